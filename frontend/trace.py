"""``torch.nn.Module`` → ``ExportedProgram``, without touching the caller's module."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ttsnn.errors import ModelImportError, TTSNNError
from ttsnn.frontend.describe import quiet
from ttsnn.frontend.neurons import swap_neurons
from ttsnn.frontend.state import check_state

__all__ = ["batch_axis", "example_of", "export_module", "prepare"]

_FLOATS = {"float32": torch.float32, "float64": torch.float64}


def batch_axis(model: nn.Module | None, x: Tensor) -> int:
    """Axis of the batch in an input: 1 for event frames [T, N, …], 0 for static images.

    A zoo model says which it takes (``static_input``); otherwise inputs with 5 axes
    ([T, N, C, H, W]) and 3 axes ([T, N, C]) have time in front.
    """
    static = getattr(model, "static_input", None)
    if isinstance(static, bool):
        return 0 if static else 1
    return 1 if x.dim() in (3, 5) else 0


def example_of(model: nn.Module, example: Any) -> tuple[Any, ...]:
    """The example inputs as a tuple; made from a zoo model's ``input_shape`` where None."""
    if example is None:
        from ttsnn.models import example_input

        if not hasattr(model, "input_shape"):
            raise ModelImportError(
                "give an example input (example=torch.zeros(…)), of the shape that the model takes"
            )
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        example = example_input(model, 1, dtype, 0)
    args = tuple(example) if isinstance(example, tuple | list) else (example,)
    args = tuple(torch.as_tensor(a) if hasattr(a, "__array__") else a for a in args)
    if not any(isinstance(a, Tensor) for a in args):
        raise ModelImportError(
            f"example must be a tensor or a tuple of tensors, got {type(example).__name__}"
        )
    return args


def prepare(model: nn.Module, dtype: str | None) -> nn.Module:
    """A copy in eval mode on the CPU, without gradients, with known neurons swapped."""
    try:
        model = copy.deepcopy(model)
    except (RuntimeError, TypeError) as err:
        raise ModelImportError(
            "the model cannot be copied, probably because a neuron still holds the membrane of an "
            f"earlier run; reset the network's state first (reset_net). ({err})"
        ) from None
    model = model.cpu().eval().requires_grad_(False)
    if dtype is not None:
        if dtype not in _FLOATS:
            raise ModelImportError(f"dtype {dtype!r} is not supported; use float32 or float64")
        model = model.to(_FLOATS[dtype])
    return swap_neurons(model)


def _cast(args: Sequence[Any], dtype: torch.dtype | None) -> tuple[Any, ...]:
    return tuple(
        a.detach().cpu().to(dtype)
        if isinstance(a, Tensor) and a.is_floating_point() and dtype
        else a.detach().cpu()
        if isinstance(a, Tensor)
        else a
        for a in args
    )


def _two_samples(x: Any, axis: int) -> Any:
    """PyTorch's tracer takes a size of 1 for a constant: trace with a batch of two."""
    if not isinstance(x, Tensor) or x.dim() <= axis or x.shape[axis] != 1:
        return x
    return torch.cat([x, x], axis)


def export_module(
    model: nn.Module,
    example: Any = None,
    *,
    dynamic_batch: bool = False,
    batch_dim: int | None = None,
    dtype: str | None = None,
) -> ExportedProgram:
    """Export a model in eval mode.

    Args:
        model: any module; a copy of it is exported, its mode and state stay as they are.
        example: example input, or a tuple of them.
        dynamic_batch: whether the batch axis of every input may vary.
        batch_dim: which axis that is; by default see :func:`batch_axis`.
        dtype: ``"float32"`` or ``"float64"``: converts the copy and the example.

    Raises:
        ModelImportError: where the model cannot be traced, holds hidden state, draws random
            numbers or branches on data.
    """
    args = example_of(model, example)
    net = prepare(model, dtype)
    first = next((p.dtype for p in net.parameters() if p.is_floating_point()), None)
    args = _cast(args, first or _FLOATS.get(dtype or ""))
    # ShapesCollection is what torch.export takes too, but its annotation does not say so
    shapes: Any = None
    if dynamic_batch:
        axes = [
            (batch_axis(model, a) if batch_dim is None else batch_dim)
            if isinstance(a, Tensor)
            else None
            for a in args
        ]
        args = tuple(
            a if d is None else _two_samples(a, d) for a, d in zip(args, axes, strict=True)
        )
        shapes = torch.export.ShapesCollection()
        for arg, axis in zip(args, axes, strict=True):
            if axis is not None:
                shapes[arg] = {axis: torch.export.Dim.DYNAMIC}
    with quiet():
        check_state(net, args)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(net, args, dynamic_shapes=shapes, strict=False)
    except TTSNNError:
        raise
    except Exception as err:
        raise ModelImportError(_why(err, dynamic_batch)) from None


def _why(err: Exception, dynamic: bool) -> str:
    text = str(err).strip()
    kind = type(err).__name__
    user = "\n".join(line for line in text.splitlines() if line.strip())[:600]
    if "DataDependent" in kind or "data-dependent" in text:
        return (
            "the model branches on the values of a tensor (an if, a loop, .item() or bool()), "
            "which cannot be compiled; use torch.where on both results, or fix the choice as a "
            f"Python value.\n{user}"
        )
    if dynamic and ("Constraints violated" in text or "specializ" in text):
        return (
            "the model fixes the batch size (a reshape or a loop with a number in it); import it "
            f"with dynamic_batch=False, or take the size from x.shape.\n{user}"
        )
    if "fake tensor" in text:
        found = re.search(r"model attribute: (\S+?)\.?\s", text + " ")
        where = f" ({found[1]})" if found else ""
        return (
            f"the model keeps a tensor in a plain Python attribute{where}, which the tracer cannot "
            "follow; register it with register_buffer, or use a neuron that ttsnn knows "
            "(ttsnn.frontend.register_neuron)"
        )
    return f"the model cannot be traced by torch.export: {kind}: {user}"
