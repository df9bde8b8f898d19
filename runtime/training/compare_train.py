"""One whole training step, compiled and in PyTorch: agreement, time, memory."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ttsnn import models
from ttsnn.errors import DataError, first_line
from ttsnn.passes.training import SGD, CrossEntropy
from ttsnn.runtime.agreement import max_rel_error
from ttsnn.runtime.measure import Pairs, peak_mb, time_pairs
from ttsnn.runtime.threads import default_threads
from ttsnn.runtime.threads import threads as use_threads
from ttsnn.runtime.training.gradcheck import TOLERANCE, error_of, flipped_spikes
from ttsnn.runtime.training.network import network_of, trained_names
from ttsnn.runtime.training.step import TrainStep
from ttsnn.sources import ModelOptions

__all__ = ["TRAIN_PEERS", "compare_train"]

TRAIN_PEERS = ("eager", "eager_loop", "eager_channels_last", "inductor", "dense_eager")
"""What is measured where nothing else is asked for."""

_LR, _MOMENTUM = 0.01, 0.9
_UNCHECKED = "ttsnn_unchecked"  # the step without activation checkpointing


def compare_train(
    model: Any,
    *,
    target: str = "cpu",
    plan: Any = None,
    mode: str = "ptt",
    init: str = "fit",
    dtype: str = "float32",
    batch: int = 1,
    threads: int | None = None,
    against: str | Sequence[str] | None = None,
    seconds: float = 2.0,
    repeats: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    x: torch.Tensor | None = None,
    activation_checkpointing: bool = False,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Compare one whole step (forward, cross-entropy, backward, SGD with momentum 0.9).

    Arguments, peers and times as in :func:`ttsnn.runtime.compare.compare`; every call is one
    more step on the same batch, which updates the weights.

    Returns:
        The fields of the inference comparison. Here ``max_rel_error`` is that of the first
        step's change of a parameter, ‖Δ − Δ̂‖₂ / ‖Δ̂‖₂ (``worst`` names it; the denominator is
        floored as in gradcheck), ``agreement`` the share of samples with the same top-1, and
        ``loss_rel_error`` that of the first loss. ``planned_mb`` is what the buffers between our
        kernels take. With ``activation_checkpointing`` the step without it is a peer too,
        ``ttsnn_unchecked``.
    """
    from ttsnn.runtime.peers import PEERS, parse_peers

    if dtype not in TOLERANCE:
        raise DataError(f"compare runs in float32 or float64, not {dtype!r}")
    say = report or (lambda _: None)
    names = TRAIN_PEERS if against is None else parse_peers(against)
    count = threads or default_threads()
    with use_threads(count):
        say("building the networks")
        settings: dict[str, Any] = {"seed": seed, "dtype": dtype, "options": options}
        network = network_of(model, x, plan=plan, mode=mode, init=init, **settings)
        twin = copy.deepcopy(network.module).train()
        network = replace(network, module=twin)
        if x is None:
            x = network.source.example(batch, dtype, seed + 1)
        program = network.program(x)
        say("compiling")
        trained = trained_names(twin, program)

        def compiled(checkpointing: bool) -> TrainStep:
            return TrainStep(
                program,
                CrossEntropy(),
                SGD(momentum=_MOMENTUM),
                params=trained,
                target=target,
                activation_checkpointing=checkpointing,
            )

        step = compiled(activation_checkpointing)
        n, classes = x.shape[network.input.batch_axis], step.logits.shape[-1]
        labels = np.random.default_rng(seed).integers(0, classes, n)
        state = step.state()
        first, told = step(state, x, labels, _LR)
        flips = flipped_spikes(network, program, x, target, False) or {
            "flipped_spikes": None,
            "spike_places": 0,
            "first_flip": None,
        }
        agreement = _agreement(twin, x, labels, state, first, told, dtype)
        holder = [first]

        def ours() -> None:
            holder[0] = step(holder[0], x, labels, _LR)[0]

        memory: dict[str, float | None] = {"ttsnn": peak_mb(ours)}
        planned = {"ttsnn": step.planned_mb}
        pairs: dict[str, Pairs] = {}
        if activation_checkpointing:
            say("measuring the step without activation checkpointing")
            plain = compiled(False)
            other = [plain.state()]

            def unchecked() -> None:
                other[0] = plain(other[0], x, labels, _LR)[0]

            memory[_UNCHECKED], planned[_UNCHECKED] = peak_mb(unchecked), plain.planned_mb
            pairs[_UNCHECKED] = time_pairs(ours, unchecked, seconds=seconds, repeats=repeats)
        skipped: dict[str, str] = {}
        dense = network_of(model, x, **settings).module if plan is not None else None
        for name in names:
            kind = name.removeprefix("dense_")
            kind = {"loop": "eager_loop", "channels_last": "eager_channels_last"}.get(kind, kind)
            if kind not in PEERS or kind == "onnxruntime":
                skipped[name] = "does not train"
            elif name.startswith("dense_") and dense is None:
                skipped[name] = "the network has no tensor trains"
            else:
                say(f"measuring {name}")
                module = network.module
                if name.startswith("dense_") and dense is not None:
                    module = dense
                try:
                    call = _peer(kind, copy.deepcopy(module).train(), x, labels)
                    memory[name] = peak_mb(call)
                    pairs[name] = time_pairs(ours, call, seconds=seconds, repeats=repeats)
                except Exception as error:  # a peer's own failure is a line of the table
                    skipped[name] = f"{type(error).__name__}: {first_line(error)}"
        times = [t for p in pairs.values() for t in p.ours_ms]
        if not times:
            alone = time_pairs(ours, lambda: None, seconds=seconds, repeats=repeats)
            times = list(alone.ours_ms)
    flipped = flips["flipped_spikes"]
    ok = agreement["max_rel_error"] <= TOLERANCE[dtype]
    if dtype == "float32" and flipped:
        ok = flipped <= 0.01 * flips["spike_places"]
    return {
        "model": network.name,
        "phase": "train",
        "target": target,
        "ok": bool(ok and (dtype == "float32" or not flipped)),
        "tolerance": TOLERANCE[dtype],
        **agreement,
        **flips,
        "time_ms": {
            "ttsnn": statistics.median(times),
            **{k: statistics.median(p.peer_ms) for k, p in pairs.items()},
        },
        "time_ratio": {k: p.ratio for k, p in pairs.items()},
        "time_spread": {k: list(p.spread) for k, p in pairs.items()},
        "time_pairs": {k: len(p.peer_ms) for k, p in pairs.items()},
        "peak_memory_mb": memory,
        "planned_mb": planned,
        "activation_checkpointing": step.checkpointing,
        "skipped": skipped,
        "compile_s": {"step": step.compile_s},
        "threads": count,
        "batch": int(n),
        "dtype": dtype,
        "T": getattr(twin, "T", None),
        "input_shape": list(x.shape),
        "mode": mode if network.plan is not None else None,
        "plan": None
        if network.plan is None
        else {"rule": network.plan.rule, "layers": len(network.plan.layers)},
        "fallback_kernels": list(step.fallbacks),
    }


def _agreement(
    twin: nn.Module,
    x: torch.Tensor,
    labels: np.ndarray,
    state: Any,
    new: Any,
    told: Any,
    dtype: str,
) -> dict[str, Any]:
    """The first step here and in PyTorch."""
    module = copy.deepcopy(twin)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    loss, logits = _step_of(module, x, labels)()
    own, start = new.arrays("param"), state.arrays("param")
    theirs = {n: (p.detach() - before[n]).numpy() for n, p in module.named_parameters() if n in own}
    largest = max(float(np.linalg.norm(v)) for v in theirs.values())
    floor = (1e-6 if dtype == "float64" else 1e-3) * largest
    errors = {n: error_of(own[n] - start[n], v, floor) for n, v in theirs.items()}
    worst = max(errors, key=lambda n: errors[n])
    same = told.logits.argmax(-1) == logits.argmax(-1)
    return {
        "max_rel_error": errors[worst],
        "worst": worst,
        "parameters": len(errors),
        "logits_error": max_rel_error(told.logits, logits),
        "loss_rel_error": abs(told.loss - loss) / max(abs(loss), 1e-30),
        "agreement": float(same.mean()),
    }


def _step_of(
    module: nn.Module,
    x: torch.Tensor,
    labels: np.ndarray,
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Callable[[], tuple[float, np.ndarray]]:
    """One step of PyTorch as users write it."""
    optimizer = torch.optim.SGD(module.parameters(), lr=_LR, momentum=_MOMENTUM)
    y = torch.from_numpy(labels)
    run = module if forward is None else forward  # a compiled module has no truth value

    def call() -> tuple[float, np.ndarray]:
        optimizer.zero_grad(set_to_none=True)
        logits = run(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        return loss.item(), logits.detach().numpy()

    return call


def _peer(kind: str, module: nn.Module, x: torch.Tensor, labels: np.ndarray) -> Callable[[], Any]:
    """One step of a peer, warmed up."""
    timed = any(isinstance(m, models.TimeModule) for m in module.modules())
    if kind == "eager_loop":
        models.set_time_execution(module, "loop")
    elif timed:
        models.set_time_execution(module, "folded")
    if kind == "eager_channels_last":
        # torch's overloads of Module.to leave this argument out
        module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x
    forward = None
    if kind == "inductor":
        torch._dynamo.reset()
        forward = torch.compile(module)
    call = _step_of(module, x, labels, forward)
    call()
    return call
