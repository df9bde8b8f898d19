"""A compiled network against its PyTorch twin and other runtimes."""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttsnn import models
from ttsnn.calibration import check_calibration, firing_rates
from ttsnn.driver import CompiledModel, build, decompose
from ttsnn.errors import DataError, first_line
from ttsnn.runtime.agreement import TOLERANCE, Agreement, agreement_of, max_rel_error
from ttsnn.runtime.measure import Pairs, peak_mb, time_pairs
from ttsnn.runtime.net import Net, load
from ttsnn.runtime.peers import PeerUnavailable, parse_peers, prepare
from ttsnn.runtime.threads import default_threads
from ttsnn.runtime.threads import threads as use_threads
from ttsnn.runtime.twins import Twins, make_twins
from ttsnn.sources import ModelOptions, resolve
from ttsnn.targets import get_target

__all__ = ["compare"]

Report = Callable[[str], None]


def compare(
    model: Any,
    *,
    target: str = "cpu",
    plan: Any = None,
    mode: str = "ptt",
    init: str = "fit",
    dense: torch.nn.Module | None = None,
    dtype: str = "float32",
    batch: int = 1,
    threads: int | None = None,
    against: str | Sequence[str] | None = None,
    seconds: float = 2.0,
    repeats: int | None = None,
    seed: int = 0,
    options: ModelOptions | None = None,
    x: torch.Tensor | None = None,
    calibrate: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Compile a network, and compare it with PyTorch and other runtimes on the same input.

    Agreement is that of a build that returns every spike; times are those of the plain build,
    saved as an artifact and loaded again. Peers are timed in pairs with it, in turn.

    Args:
        model: what :func:`ttsnn.compile` accepts, except files.
        plan, mode, init: tensor trains; None: the network as it is.
        dense: what ``dense_…`` peers run, for a network that brings tensor trains of its own
            (trained further, say); with a plan it is the network itself.
        dtype: ``"float32"`` or ``"float64"``.
        batch: samples.
        threads: CPU threads of everybody; all by default.
        against: names of :data:`ttsnn.runtime.peers.PEERS`, ``dense_…``; a sensible set by
            default.
        seconds: time spent on each peer's pairs; ``repeats``: an exact number of them instead.
        seed: of weights and input.
        options: how to resolve ``model``, where it is a name.
        x: the input instead of a random one.
        calibrate: let the firing rates on the input choose event-driven layers.
        report: is told what is being done.

    Returns:
        A dict of plain values. ``max_rel_error``: max |ours − PyTorch| / max |PyTorch| over the
        logits. ``flipped_spikes``: places where one fired and the other did not.
        ``agreement``: share of samples with the same top-1. ``time_ms``: medians;
        ``time_ratio``: peer / ours, median of the pairs; ``time_spread``: their quartiles.
        ``peak_memory_mb``: see :func:`ttsnn.runtime.measure.peak_mb`; ours is ``planned_mb``, the
        buffers between our kernels, at least. ``skipped``: peer → why.
        ``ok``: whether the agreement passes, see :meth:`Agreement.ok`.
    """
    say = report or (lambda _: None)
    if dtype not in TOLERANCE:
        raise DataError(f"compare runs in float32 or float64, not {dtype!r}")
    names = parse_peers(against)
    if calibrate:
        check_calibration(target, x)
    count = threads or default_threads()
    chosen = get_target(target).for_threads(count)
    options = options or ModelOptions(seed=seed)
    with use_threads(count):
        say("building the PyTorch networks")
        source = resolve(model, options)
        if x is None:
            x = source.example(batch, dtype, seed) if source.kind == "module" else torch.empty(0)
        twins = make_twins(source, plan, mode, init=init, dense=dense, seed=seed, dtype=dtype, x=x)
        say("compiling")
        program = twins.program
        if twins.plan is not None:
            program = decompose(program, twins.plan, init=init, seed=seed)
        rates = None
        if calibrate:
            say("measuring firing rates")
            rates = firing_rates(program, twins.x)
        net = build(program, chosen, name=source.name, plan=twins.plan, firing_rates=rates)
        say("compiling with recorded spikes")
        recording = build(program, chosen, name=source.name, record_spikes=True, firing_rates=rates)
        result, layers = _agreement(recording, twins)
        del recording
        planned = chosen.planned_bytes(net.program).get("main", 0) / 1e6
        with tempfile.TemporaryDirectory(prefix="ttsnn-compare-") as folder:
            path = Path(folder) / "net.ttsnn"
            artifact_bytes = net.save(path)
            measured = _measure(
                load(path), twins, names, count, Path(folder), seconds, repeats, say
            )
    if measured["peak_memory_mb"].get("ttsnn") is not None:
        # resident memory does not show what the allocator had resident already
        measured["peak_memory_mb"]["ttsnn"] = max(measured["peak_memory_mb"]["ttsnn"], planned)
    return {
        "model": source.name,
        "target": target,
        "ok": result.ok(dtype),
        "tolerance": TOLERANCE[dtype],
        "max_rel_error": result.max_rel_error,
        "flipped_spikes": result.flipped_spikes,
        "total_spikes": result.total_spikes,
        "spike_places": result.spike_places,
        "first_flip": layers[result.first_flip] if result.first_flip is not None else None,
        "samples_without_flip": result.checked_samples,
        "max_rel_error_without_flip": result.checked_error,
        "agreement": result.top1,
        **measured,
        "planned_mb": {"ttsnn": planned},
        "artifact_bytes": artifact_bytes,
        "compile_s": net.compile_s,
        "threads": count,
        "batch": int(x.shape[source.input.batch_axis]) if source.input else 0,
        "dtype": dtype,
        "T": net.manifest.T,
        "input_shape": list(x.shape),
        "mode": mode if twins.plan is not None else None,
        "plan": _plan(twins.plan),
        "weights": twins.weights,
        "firing_rates": dict(zip(layers, result.layer_rates)),
        **_counts(program, net),
        "dense": _against_dense(twins),
        "fallback_kernels": net.manifest.fallback_kernels,
    }


def _agreement(recording: CompiledModel, twins: Twins) -> tuple[Agreement, list[str]]:
    """Agreement of the recording build with the twin, and names of the neuron layers."""
    recorded = set(recording.manifest.spikes)
    out = recording(twins.x)
    named = dict(
        zip(
            (s.name for s in recording.outputs),
            out if isinstance(out, tuple) else (out,),
        )
    )
    ours = [v.numpy() for k, v in named.items() if k in recorded]
    logits = next(v for k, v in named.items() if k not in recorded).numpy()
    reference, pairs = models.spikes_of(twins.twin, twins.x)
    if isinstance(reference, (tuple, list)):
        reference = reference[0]
    theirs = [s.numpy() for _, s in pairs]
    names = [name for name, _ in pairs]
    same = len(ours) == len(theirs) > 0 and all(a.shape == b.shape for a, b in zip(ours, theirs))
    if not same:  # neurons that are not ttsnn.models.LIF: only the results can be compared
        return agreement_of(logits, reference.numpy(), None, None), []
    return agreement_of(logits, reference.numpy(), ours, theirs), names


def _measure(
    net: Net,
    twins: Twins,
    names: Sequence[str],
    threads: int,
    folder: Path,
    seconds: float,
    repeats: int | None,
    say: Report,
) -> dict[str, Any]:
    """Memory and times of the artifact and of each peer."""
    x = twins.x
    memory: dict[str, float | None] = {"ttsnn": peak_mb(lambda: net(x))}
    pairs: dict[str, Pairs] = {}
    skipped: dict[str, str] = {}
    errors: dict[str, float] = {}
    for name in names:
        dense = name.startswith("dense_")
        if dense and twins.dense is twins.twin:
            skipped[name] = "no dense network beside this one: give a plan"
            continue
        say(f"measuring {name}")
        network = copy.deepcopy(twins.dense if dense else twins.twin)
        place = folder / name
        place.mkdir()
        try:
            call = prepare(name, network, x, threads, place)
            memory[name] = peak_mb(call, warm="onnxruntime" not in name)
            if not dense:
                errors[name] = max_rel_error(np.asarray(call()), _reference(twins))
            pairs[name] = time_pairs(lambda: net(x), call, seconds=seconds, repeats=repeats)
        except PeerUnavailable as reason:
            skipped[name] = str(reason)
        except Exception as error:  # a peer's own failure is a line of the table
            skipped[name] = f"{type(error).__name__}: {first_line(error)}"
    ours = [t for p in pairs.values() for t in p.ours_ms]
    if not ours:
        alone = time_pairs(lambda: net(x), lambda: None, seconds=seconds, repeats=repeats)
        ours = list(alone.ours_ms)
    return {
        "time_ms": {
            "ttsnn": statistics.median(ours),
            **{k: statistics.median(p.peer_ms) for k, p in pairs.items()},
        },
        "time_ratio": {k: p.ratio for k, p in pairs.items()},
        "time_spread": {k: list(p.spread) for k, p in pairs.items()},
        "time_pairs": {k: len(p.peer_ms) for k, p in pairs.items()},
        "peak_memory_mb": memory,
        "peer_error": errors,
        "skipped": skipped,
    }


def _reference(twins: Twins) -> np.ndarray:
    with torch.no_grad():
        out = twins.twin(twins.x)
    return (out[0] if isinstance(out, (tuple, list)) else out).numpy()


def _against_dense(twins: Twins) -> dict[str, float] | None:
    """How far the network with tensor trains is from the one without; None where it is one."""
    if twins.dense is twins.twin:
        return None
    ours = _reference(twins)
    with torch.no_grad():
        out = twins.dense(twins.x)
    theirs = (out[0] if isinstance(out, (tuple, list)) else out).numpy()
    n = ours.shape[0]
    same = ours.reshape(n, -1).argmax(1) == theirs.reshape(n, -1).argmax(1)
    return {"agreement": float(same.mean()), "max_rel_difference": max_rel_error(ours, theirs)}


def _plan(plan: Any) -> dict[str, Any] | None:
    if plan is None:
        return None
    layers = plan.layers.values()
    return {
        "rule": plan.rule,
        "layers": len(layers),
        "modes": sorted({layer.mode for layer in layers}),
    }


def _counts(program: Any, net: Net) -> dict[str, Any]:
    """Parameters and multiply-accumulates of one sample, dense and with the plan; and the
    multiply-accumulates that the kernels execute for it.
    """
    from ttsnn.passes import count

    cost = count(program)
    return {
        "params": {"dense": cost.dense_params, "tt": cost.params},
        "flops": {"dense": cost.dense_flops, "tt": cost.flops},
        "executed_macs": net.manifest.executed_macs,
    }
