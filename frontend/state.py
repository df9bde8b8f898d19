"""Finds state that a model keeps in Python attributes, where no tracer sees it.

Buffers that a model updates are explicit to ``torch.export``. A tensor kept in a plain attribute
(``self.v``) is not: its first value would become a constant and its updates would be lost. The
model is therefore run on a copy: where a second run leaves another value than the first, or
gives another result, the attribute carries state from call to call.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ttsnn.errors import ModelImportError

__all__ = ["check_state"]

_CURE = (
    "Register it with register_buffer so that it becomes an input and an output, reset it at the "
    "start of forward, or pass it in and return it."
)


def _leaves(value: Any, path: str, depth: int = 0) -> dict[str, Any]:
    """Tensors and numbers in an attribute, also inside containers."""
    if isinstance(value, Tensor | bool | int | float) or value is None:
        return {path: value}
    out: dict[str, Any] = {}
    if depth < 3 and isinstance(value, dict):
        for k, v in value.items():
            out.update(_leaves(v, f"{path}.{k}", depth + 1))
    elif depth < 3 and isinstance(value, list | tuple):
        for i, v in enumerate(value):
            out.update(_leaves(v, f"{path}.{i}", depth + 1))
    return out


def _snapshot(net: nn.Module) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules", "training") or "hook" in key:
                continue
            out.update(_leaves(value, f"{name}.{key}" if name else key))
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in out.items()}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return a is b or a == b


def _changed(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return [k for k in {**a, **b} if k not in a or k not in b or not _same(a[k], b[k])]


def check_state(net: nn.Module, args: Sequence[Any]) -> None:
    """Raise :class:`ModelImportError` for state hidden in Python attributes.

    Args:
        net: the model in eval mode; it is not run itself, only a copy.
        args: example inputs; replaced by seeded random numbers of the same shape, so that an
            example of zeros does not hide anything.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.rand(a.shape, dtype=a.dtype, generator=generator)
        if isinstance(a, Tensor) and a.is_floating_point()
        else a
        for a in args
    ]
    probe = copy.deepcopy(net)
    before = _snapshot(probe)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            probe(*[a.clone() if isinstance(a, Tensor) else a for a in inputs])
        except ModelImportError:
            raise
        except Exception as err:
            raise ModelImportError(
                f"the model fails on an input like the example, of shapes "
                f"{[list(a.shape) for a in args if isinstance(a, Tensor)]}: "
                f"{type(err).__name__}: {str(err).strip()[:400]}"
            ) from None
        first = _snapshot(probe)
        touched = _changed(before, first)
        if not touched:
            return
        try:
            probe(*[a.clone() if isinstance(a, Tensor) else a for a in inputs])
        except Exception as err:
            raise ModelImportError(
                f"the model keeps state in {', '.join(touched[:5])} and fails when it is run "
                f"twice ({type(err).__name__}: {str(err).strip()[:200]}). {_CURE}"
            ) from None
    carried = _changed(first, _snapshot(probe))
    stale = [k for k in touched if isinstance(before.get(k), Tensor)]
    if carried:
        raise ModelImportError(
            f"the model carries state from call to call in {', '.join(map(repr, carried[:5]))}, "
            f"which would be lost. {_CURE}"
        )
    if stale:
        raise ModelImportError(
            f"{', '.join(map(repr, stale[:5]))} holds a tensor of an earlier run; reset the "
            "network's state before importing it (reset_net), or register it as a buffer"
        )
