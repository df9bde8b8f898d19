"""The PyTorch side of a network in training: what it is imported as, and what cannot be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn

from ttsnn import models
from ttsnn.driver import import_source, make_plan
from ttsnn.errors import ModelImportError
from ttsnn.passes.rewriter import prune
from ttsnn.program import params_of
from ttsnn.sources import InputShape, ModelOptions, ModelSource, resolve

__all__ = [
    "Network",
    "arrays_of",
    "check_trainable",
    "frozen_norms",
    "network_of",
    "trained_names",
]

_NORMS = nn.modules.batchnorm._BatchNorm
_RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d)


@dataclass(frozen=True)
class Network:
    """A network to be trained.

    Attributes:
        name: for reports.
        module: the PyTorch network, with tensor trains where a plan was given; holds the weights.
        plan: None without tensor trains.
        input: shape of its input, batch open.
        source: where it came from.
    """

    name: str
    module: nn.Module
    plan: Any
    input: InputShape
    source: ModelSource

    def program(self, example: torch.Tensor, *, dynamic_batch: bool = False) -> tvm.IRModule:
        """The network as a program for inputs like this one, in the weights' dtype."""
        dtype = str(example.dtype).removeprefix("torch.")
        source = replace(self.source, module=self.module)
        return import_source(source, example, dtype=dtype, dynamic_batch=dynamic_batch)


def network_of(
    model: Any,
    example: torch.Tensor | None = None,
    *,
    plan: Any = None,
    mode: str = "ptt",
    init: str = "fit",
    seed: int = 0,
    dtype: str | None = None,
    options: ModelOptions | None = None,
) -> Network:
    """Find a network, and apply a plan to it.

    Without a plan and a change of dtype the user's module itself is taken; else a copy.

    Args:
        model: what :func:`ttsnn.compile` accepts, except files.
        example: example input, where the network does not say what it takes.
        plan, mode, init, seed: tensor trains; None: dense.
        dtype: convert to it; None: as the weights are.
        options: how to resolve ``model``, where it is a name.

    Raises:
        ModelImportError: a file, or something that cannot be trained (see
            :func:`check_trainable`).
        PlanError: the plan does not fit.
    """
    options = options or ModelOptions(seed=seed)
    if example is not None and isinstance(model, nn.Module) and options.input_shape is None:
        options = replace(options, input_shape=_shape_of(model, example))
    source = resolve(model, options)
    if source.kind != "module":
        raise ModelImportError(
            f"{source.path}: training needs the PyTorch network itself: give a zoo name, "
            "package.module:factory or a torch.nn.Module"
        )
    module = source.module
    first = next((p.dtype for p in module.parameters() if p.is_floating_point()), None)
    if dtype is not None and first != getattr(torch, dtype):
        import copy

        module = copy.deepcopy(module).to(getattr(torch, dtype))
    made, plan = source.plan, source.plan_to_apply(plan, mode)
    if plan is not None:
        program = import_source(replace(source, module=module), example, dtype=dtype)
        made = make_plan(program, plan, mode)
        module = models.apply_plan(module, made, init=init, seed=seed)
    check_trainable(module)
    assert source.input is not None
    return Network(source.name, module, made, source.input, source)


def _shape_of(model: nn.Module, example: torch.Tensor) -> InputShape:
    from ttsnn.frontend.trace import batch_axis

    axis = batch_axis(model, example)
    sizes = tuple(example.shape)
    return InputShape((*sizes[:axis], 0, *sizes[axis + 1 :]), axis)


def check_trainable(module: nn.Module) -> None:
    """Refuse what would silently be trained as something else.

    The compiled code comes from the network in eval mode, with its batch norms then put on batch
    statistics; layers that draw random numbers in train mode would vanish.

    Raises:
        ModelImportError: naming the layer.
    """
    for name, part in module.named_modules():
        if isinstance(part, _RANDOM) and getattr(part, "p", 1.0) != 0.0:
            raise ModelImportError(
                f"layer {name!r} ({type(part).__name__}) draws random numbers in train mode, which "
                "compiled training does not do; remove it, or set its p to 0"
            )
        if isinstance(part, nn.SyncBatchNorm):
            raise ModelImportError(
                f"layer {name!r} (SyncBatchNorm) is not supported; use BatchNorm, whose statistics "
                "are then each process's own"
            )
    if not any(p.requires_grad for p in module.parameters()):
        raise ModelImportError("the network has no parameter that requires a gradient")


def frozen_norms(module: nn.Module) -> tuple[str, ...]:
    """Batch norms in eval mode, which keep their running statistics."""
    return tuple(n for n, m in module.named_modules() if isinstance(m, _NORMS) and not m.training)


def trained_names(module: nn.Module, program: tvm.IRModule | None = None) -> tuple[str, ...]:
    """Parameters that require a gradient, by ``state_dict`` name; a shared one once.

    With the module's program only those that it reads: what ``forward`` does not use has no
    gradient in PyTorch either.
    """
    wanted = (n for n, p in module.named_parameters() if p.requires_grad)
    if program is None:
        return tuple(wanted)
    read = params_of(prune(program))
    return tuple(n for n in wanted if n in read)


def arrays_of(module: nn.Module) -> dict[str, np.ndarray]:
    """All parameters and buffers as arrays over the same memory, shared ones by all names."""
    named: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    named |= dict(module.named_buffers(remove_duplicate=False))
    return {k: v.detach().numpy() for k, v in named.items()}
