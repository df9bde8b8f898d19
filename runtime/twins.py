"""The PyTorch networks that a compiled one is compared with."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch import nn

from ttsnn import models
from ttsnn.driver import import_source, make_plan
from ttsnn.errors import ModelImportError
from ttsnn.passes.layer_infos import called_each_step
from ttsnn.program import params_of, with_params
from ttsnn.sources import ModelSource

__all__ = ["Twins", "make_twins"]

_STATISTICS = (".running_mean", ".running_var")


@dataclass(frozen=True)
class Twins:
    """One network in the forms that are compared.

    Attributes:
        program: the dense network, imported, with the batch-norm statistics of ``twin``; the
            compiler decomposes it by ``plan`` itself.
        plan: None without tensor trains.
        twin: the PyTorch network with the plan applied; ``dense`` where there is no plan.
        dense: the PyTorch network without tensor trains.
        x: the input that all are run on.
        weights: ``"given"``, or how they were made.
    """

    program: tvm.IRModule
    plan: Any
    twin: nn.Module
    dense: nn.Module
    x: torch.Tensor
    weights: str


def make_twins(
    source: ModelSource,
    plan: Any,
    mode: str,
    *,
    init: str = "fit",
    dense: nn.Module | None = None,
    seed: int = 0,
    dtype: str = "float32",
    x: torch.Tensor,
) -> Twins:
    """Apply a plan to a network in PyTorch, and make both ready for the comparison.

    A network without trained weights gets batch-norm statistics from seeded random input, with
    and without tensor trains, since otherwise its neurons would fall silent or fire always.

    Args:
        source: a PyTorch network.
        plan: rule, file or plan; None: leave the network as it is.
        dense: the network without tensor trains, where ``source`` has its own; not with a plan.
        x: the input of the comparison, in ``dtype``.

    Raises:
        ModelImportError: the source is a file, which has no PyTorch modules to apply a plan to.
        PlanError: the plan does not fit.
    """
    if source.kind != "module":
        raise ModelImportError(
            f"{source.path}: compare needs the PyTorch network itself: give a zoo name or "
            "package.module:factory"
        )
    plan = source.plan_to_apply(plan, mode)
    if plan is not None and dense is not None:
        raise ModelImportError("dense= is for a network with tensor trains of its own: no plan")
    network = copy.deepcopy(source.module).to(getattr(torch, dtype)).eval()
    program = import_source(_with_module(source, network), x, dtype=dtype)
    made = None
    twin = network
    if plan is not None:
        made = make_plan(program, plan, mode)
        twin = models.apply_plan(
            network, made, init=init, seed=seed, stepwise=called_each_step(program)
        ).eval()
    elif dense is not None:
        network = copy.deepcopy(dense).to(getattr(torch, dtype)).eval()
    dense = network
    weights = "given"
    if source.input is not None and not source.trained and not _has_statistics(source):
        weights = f"random (seed {seed}), batch norm calibrated on random input"
        batch = max(x.shape[source.input.batch_axis], 8)
        sample = source.example(batch, dtype, seed + 1)
        for network in {id(n): n for n in (dense, twin)}.values():
            models.calibrate(network, sample)
        program = _with_statistics(program, twin)
    return Twins(program, made, twin, dense, x, weights)


def _with_module(source: ModelSource, module: nn.Module) -> ModelSource:
    from dataclasses import replace

    return replace(source, module=module)


def _has_statistics(source: ModelSource) -> bool:
    """Whether a factory's network brings batch-norm statistics of its own (so it was trained).

    The zoo's networks have statistics that were made for them, which are not worth keeping.
    """
    if source.name in models.ZOO:
        return False
    for module in source.module.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            if module.running_mean.any() or (module.running_var - 1).any():
                return True
    return False


def _with_statistics(program: tvm.IRModule, network: nn.Module) -> tvm.IRModule:
    """The program with a network's batch-norm statistics."""
    state = network.state_dict()
    params = params_of(program)
    return with_params(
        program,
        {
            name: np.asarray(state[name].numpy())
            if name.endswith(_STATISTICS) and name in state
            else value
            for name, value in params.items()
        },
    )
