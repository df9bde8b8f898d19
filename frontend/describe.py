"""Names of layers and source lines for messages about a traced graph; a quiet console."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import fx

__all__ = ["describe_node", "layer_of", "problem_report", "quiet", "source_line"]

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)')


def layer_of(node: fx.Node) -> str:
    """``layer1.0.lif (LIF)``: innermost module that a node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "the model"
    path, cls = list(stack.values())[-1]
    if not isinstance(cls, str):
        cls = cls.__name__
    path = re.sub(r"^L\['self'\]\.?|\._modules\['|'\]", "", str(path))
    return f"layer {path!r} ({cls.rpartition('.')[2]})" if path else f"the model ({cls})"


def source_line(node: fx.Node) -> str | None:
    """``net.py:12: y = torch.fft.fft(x)`` of the innermost frame outside PyTorch's own code."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [f for f in frames if "/torch/" not in f[0]] or frames
    if not own:
        return None
    file, line, _, text = own[-1]
    return f"{file}:{line}" + (f": {text.strip()}" if text.strip() else "")


def describe_node(node: fx.Node, why: str) -> str:
    """One line about one refused node."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target._schema.name.replace('::', '.')}.{target._overloadname}"
        name = name.removesuffix(".default")
    else:
        name = getattr(target, "__name__", str(target))
    where = source_line(node)
    return f"{name} in {layer_of(node)}" + (f" at {where}" if where else "") + f": {why}"


def problem_report(what: str, problems: Sequence[str]) -> str:
    """All refused nodes, the same one (a loop over time) only once."""
    counts: dict[str, int] = {}
    for p in problems:
        counts[p] = counts.get(p, 0) + 1
    lines = [f"  - {p}" + (f" ({n} times)" if n > 1 else "") for p, n in counts.items()]
    noun = "operator" if len(lines) == 1 else "operators"
    return (
        f"{what}: {len(lines)} {noun} cannot be imported:\n"
        + "\n".join(lines)
        + "\nReplace them in the model by supported operators, or keep that part outside it."
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the warnings and log lines of tracers and exporters off the console."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
