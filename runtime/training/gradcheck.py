"""Gradients of the compiled step against PyTorch's autograd."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tvm
from torch import nn

from ttsnn import models
from ttsnn.errors import DataError
from ttsnn.passes import ExposeSpikes
from ttsnn.passes.training import (
    CrossEntropy,
    Manifest,
    Signature,
    Slot,
    TrainingBatchNorm,
    build_gradients,
)
from ttsnn.passes.training.graph import Graph
from ttsnn.passes.training.roles import Roles, batch_norm_entries, trainable_params
from ttsnn.program import param_names, params_of
from ttsnn.runtime.threads import default_threads
from ttsnn.runtime.threads import threads as use_threads
from ttsnn.runtime.training.code import TrainingCode, build_training, share
from ttsnn.runtime.training.network import Network, network_of, trained_names
from ttsnn.sources import ModelOptions

__all__ = ["TOLERANCE", "error_of", "flipped_spikes", "gradcheck"]

TOLERANCE = {"float64": 1e-9, "float32": 1e-2}
"""Largest ``max_rel_error`` that passes. In float32 rounding may carry a membrane over the
threshold or over the edge of the surrogate's window, which changes a gradient by a whole term."""

_FLOOR = {"float64": 1e-6, "float32": 1e-3}
_FLIPS = 0.01  # share of the places that may flip in float32
_LIF = "relax.snn.lif"

Report = Callable[[str], None]


def gradcheck(
    model: Any,
    *,
    plan: Any = None,
    mode: str = "ptt",
    init: str = "fit",
    dtype: str = "float64",
    batch: int = 2,
    seed: int = 0,
    target: str = "cpu",
    threads: int | None = None,
    tolerance: float | None = None,
    finite_differences: bool = False,
    spikes: bool = True,
    frozen_bn: bool = False,
    options: ModelOptions | None = None,
    report: Report | None = None,
) -> dict[str, Any]:
    """Compare every parameter's gradient with that of the PyTorch network in ``train()`` mode.

    The gradients are those of the mean cross-entropy on seeded random input and labels.

    Args:
        model: what :func:`ttsnn.compile` accepts, except files.
        plan, mode, init: tensor trains; None: dense.
        dtype: ``"float64"``, where spikes must be the same, or ``"float32"``.
        batch: samples.
        seed: of weights, input and labels.
        tolerance: instead of :data:`TOLERANCE`.
        finite_differences: check the parameters behind the last spikes by central differences
            of the compiled loss too.
        spikes: count flipped spikes, by a build that returns them.
        frozen_bn: batch norms in eval mode, here and in PyTorch.
        report: is told what is being done.

    Returns:
        Plain values. ``max_rel_error``: largest error of a parameter, ‖g − ĝ‖₂ / ‖ĝ‖₂ with ĝ
        PyTorch's; the denominator is at least 1e-6 (float32: 1e-3) of the largest ‖ĝ‖₂ of all
        parameters, since a gradient that is zero but for rounding (a bias before a batch norm)
        has no digits to compare. ``worst``: name of that parameter. ``parameters``: how many
        were compared. ``missing``: names of those that PyTorch gives a gradient and the compiled
        code does not. ``errors``: name → error. ``loss``, ``loss_rel_error``.
        ``statistics_error``: max |difference| of new running statistics over their max.
        ``flipped_spikes`` of ``spike_places``. ``ok``: whether it passes.
    """
    if dtype not in TOLERANCE:
        raise DataError(f"gradcheck runs in float32 or float64, not {dtype!r}")
    say = report or (lambda _: None)
    with use_threads(threads or default_threads()):
        say("building the networks")
        network = network_of(
            model, plan=plan, mode=mode, init=init, seed=seed, dtype=dtype, options=options
        )
        module = copy.deepcopy(network.module).train()
        if frozen_bn:
            _freeze(module)
        network = replace(network, module=module)
        x = _example(network, batch, dtype, seed)
        program = network.program(x)
        say("compiling the gradients")
        mod = build_gradients(
            program, CrossEntropy(), params=trained_names(module, program), frozen_bn=frozen_bn
        )
        code = build_training(mod, target)
        classes = next(s for s in mod_results(mod) if s.role == "output").shape[-1]
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, classes, x.shape[network.input.batch_axis])
        say("comparing")
        state = {k: v.detach().clone() for k, v in _named(module).items()}
        ours = _ours(code, state, x, labels)
        flips = flipped_spikes(network, program, x, target, frozen_bn) if spikes else None
        theirs = _theirs(module, x, labels)
        result = _compare(ours, theirs, module, dtype)
        smooth = None
        if finite_differences:
            say("finite differences")
            smooth = _finite_differences(code, program, state, x, labels, ours, seed)
    limit = TOLERANCE[dtype] if tolerance is None else tolerance
    ok = not result["missing"] and result["max_rel_error"] <= limit
    if flips is not None and dtype == "float64":
        ok = ok and flips["flipped_spikes"] == 0
    elif flips is not None and flips["flipped_spikes"]:
        # one spike that rounding flipped changes every gradient before it
        ok = not result["missing"] and flips["flipped_spikes"] <= _FLIPS * flips["spike_places"]
    if smooth is not None:
        ok = ok and all(e <= 1e-4 for e in smooth.values())
    return {
        "model": network.name,
        "ok": bool(ok),
        "tolerance": limit,
        **result,
        **(flips or {"flipped_spikes": None, "spike_places": 0}),
        "finite_differences": smooth,
        "dtype": dtype,
        "batch": batch,
        "T": getattr(module, "T", None),
        "input_shape": list(x.shape),
        "mode": mode if network.plan is not None else None,
        "layers": 0 if network.plan is None else len(network.plan.layers),
        "batch_norm": "frozen" if frozen_bn else "batch statistics",
        "compile_s": code.compile_s,
        "fallback_kernels": list(code.fallbacks),
    }


def error_of(ours: np.ndarray, theirs: np.ndarray, floor: float = 0.0) -> float:
    """‖ours − theirs‖₂ / max(‖theirs‖₂, floor); 0 where they are equal."""
    difference = float(np.linalg.norm((ours - theirs).astype(np.float64)))
    if difference == 0.0:
        return 0.0
    scale = max(float(np.linalg.norm(theirs.astype(np.float64))), floor)
    return difference / scale if scale else float("inf")


def flipped_spikes(
    network: Network, program: tvm.IRModule, x: torch.Tensor, target: str, frozen_bn: bool
) -> dict[str, Any] | None:
    """Spikes of the compiled forward in train mode against PyTorch's; None where not known.

    The network's running statistics stay as they are.
    """
    mod = TrainingBatchNorm(frozen_bn)(ExposeSpikes()(program))
    roles = Roles.of(mod, Graph.of(mod["main"]).results, trainable_params(mod))
    signature = Signature(roles.arguments, roles.results)
    code = build_training(
        Manifest({"main": signature}, batch_norm_entries(mod)).attach(mod), target
    )
    state = _named(network.module)
    out = code.call("main", lambda s: share(x if s.role == "input" else state[s.name], s))
    recorded = [np.from_dlpack(v) for (role, _), v in out.items() if role == "output"]
    _, pairs = models.spikes_of(copy.deepcopy(network.module), x)
    theirs = [s.detach().numpy() for _, s in pairs]
    ours = recorded[len(recorded) - len(theirs) :]
    if not theirs or any(a.shape != b.shape for a, b in zip(ours, theirs)):
        return None  # neurons that are not ttsnn.models.LIF
    flips = [int(((a != 0) != (b != 0)).sum()) for a, b in zip(ours, theirs)]
    first = next((name for (name, _), n in zip(pairs, flips) if n), None)
    return {
        "flipped_spikes": sum(flips),
        "spike_places": sum(a.size for a in theirs),
        "first_flip": first,
    }


def mod_results(mod: tvm.IRModule) -> tuple[Slot, ...]:
    """Slots of the results of ``main``."""
    return Manifest.of(mod).functions["main"].results


def _freeze(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


def _example(network: Network, batch: int, dtype: str, seed: int) -> torch.Tensor:
    return network.source.example(batch, dtype, seed + 1)


def _named(module: nn.Module) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    return named | dict(module.named_buffers(remove_duplicate=False))


def _ours(
    code: TrainingCode, state: dict[str, torch.Tensor], x: torch.Tensor, labels: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    def value(slot: Slot) -> Any:
        given = {"input": x, "label": labels}
        return share(given[slot.role] if slot.role in given else state[slot.name], slot)

    return {k: np.from_dlpack(v) for k, v in code.call("main", value).items()}


def _theirs(
    module: nn.Module, x: torch.Tensor, labels: np.ndarray
) -> dict[tuple[str, str], np.ndarray]:
    """Loss and gradients of PyTorch, and the buffers after the forward pass."""
    module.zero_grad(set_to_none=True)
    loss = F.cross_entropy(module(x), torch.from_numpy(labels))
    loss.backward()
    out = {("loss", "loss"): loss.detach().numpy()}
    out |= {("grad", n): p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None}
    return out | {("buffer", n): b.numpy() for n, b in module.named_buffers()}


def _compare(
    ours: dict[tuple[str, str], np.ndarray],
    theirs: dict[tuple[str, str], np.ndarray],
    module: nn.Module,
    dtype: str,
) -> dict[str, Any]:
    names = [n for role, n in theirs if role == "grad"]
    missing = [n for n in names if ("grad", n) not in ours]
    norms = {n: float(np.linalg.norm(theirs["grad", n])) for n in names}
    floor = _FLOOR[dtype] * max(norms.values(), default=0.0)
    errors = {
        n: error_of(ours["grad", n], theirs["grad", n], floor) for n in names if n not in missing
    }
    worst = max(errors, key=lambda n: (np.isnan(errors[n]), errors[n]), default=None)
    loss, expected = float(ours["loss", "loss"]), float(theirs["loss", "loss"])
    statistics = [
        float(np.abs(v - theirs[k]).max() / max(np.abs(theirs[k]).max(), 1e-30))
        for k, v in ours.items()
        if k[0] == "buffer" and k in theirs and v.size
    ]
    return {
        "max_rel_error": errors[worst] if worst is not None else float("nan"),
        "worst": worst,
        "parameters": len(errors),
        "missing": missing,
        "errors": errors,
        "loss": loss,
        "loss_rel_error": abs(loss - expected) / max(abs(expected), 1e-30),
        "statistics_error": max(statistics, default=0.0),
    }


def _smooth_params(program: tvm.IRModule, names: set[str]) -> list[str]:
    """Parameters from which no neuron depends: the loss is smooth in them."""
    graph = Graph.of(program["main"])
    found = []
    for var, name in param_names(program).items():
        reached = graph.dependent([var])
        fires = any(
            isinstance(e, tvm.relax.Call) and getattr(e.op, "name", "") == _LIF
            for v, e in graph.bindings.items()
            if v in reached
        )
        if name in names and not fires:
            found.append(name)
    return found


def _finite_differences(
    code: TrainingCode,
    program: tvm.IRModule,
    state: dict[str, torch.Tensor],
    x: torch.Tensor,
    labels: np.ndarray,
    ours: dict[tuple[str, str], np.ndarray],
    seed: int,
) -> dict[str, float]:
    """Relative error of the gradient along a random direction, for each smooth parameter."""
    grads = {n for role, n in ours if role == "grad"}
    step = 1e-5 if x.dtype == torch.float64 else 1e-2
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name in _smooth_params(program, grads & set(params_of(program))):
        value = state[name]
        direction = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        losses = [
            float(_ours(code, {**state, name: value + s * direction}, x, labels)["loss", "loss"])
            for s in (step, -step)
        ]
        expected = (losses[0] - losses[1]) / (2 * step)
        found = float((ours["grad", name] * direction.numpy()).sum())
        out[name] = abs(found - expected) / max(abs(expected), 1e-6)
    return out
