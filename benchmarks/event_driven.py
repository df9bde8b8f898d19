"""Where the event-driven form of a layer's first stage beats the dense one, over the firing rate.

    python benchmarks/event_driven.py --out benchmarks/results/event_driven.json

The first stages of MS-ResNet18's layers alone, spikes as bytes in, sums out, one image, T = 4, one
thread: the first cores of its tensor trains at the paper's ranks, and the 3×3 convolutions of the
dense network. Both forms are called in turn, on inputs that change from call to call, so that no
branch predictor learns them; the ratio is dense / events, so events win above 1. Where the ratio
crosses 1 stands beside what ``ttsnn.passes.cpu.event_choice`` says. Writes JSON, and a plot beside
it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from cpu import machine
from kernels import layers

from ttsnn.passes.cpu.event_choice import event_limit
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.kernels.pack import pack_layer_weights
from ttsnn.passes.cpu.kernels.tiles import default_tiles
from ttsnn.passes.cpu.rules.layer import layer_rule
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.reference import reference_layer
from ttsnn.passes.layers.signature import operand_shapes, result_shapes
from ttsnn.runtime.measure import time_pairs
from ttsnn.runtime.threads import apply_threads, prepare, threads
from ttsnn.targets import get_target

RATES = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
INPUTS = 16
SQUARE = tuple(itertools.product((-1, 0, 1), repeat=2))


def cases(dtype: str) -> list[LayerConfig]:
    """A first core for each size of channels and image, then the dense convolutions."""
    cores: dict[tuple[int, int], Stage] = {}
    squares: dict[str, Stage] = {}
    for config in layers(dtype):
        first, last = config.stages[0], config.stages[-1]
        cores.setdefault((first.in_channels, first.out_size[0]), first)
        if first.in_channels == last.out_channels:
            square = replace(first, taps=SQUARE, out_channels=first.in_channels)
            squares.setdefault(f"3×3 {first.in_channels}→{last.out_channels}", square)
    named = {f"{s.in_channels}→{s.out_channels}, {s.out_size[0]}²": s for s in cores.values()}
    return [
        LayerConfig(
            name=name, T=4, x_T=4, stages=(stage,), half_stages=(), timesteps=4, bias=False,
            residual=False, residual_T=4, lif=None, v0=False, emit=("membrane",), dtype=dtype,
            byte_x=True,
        )
        for name, stage in {**named, **squares}.items()
    ]  # fmt: skip


class Kernel:
    """One of the two forms of a stage."""

    def __init__(
        self, config: LayerConfig, weight: np.ndarray, target: tvm.target.Target, events: bool
    ) -> None:
        config, (packed,) = pack_layer_weights(config, [weight], target)
        tiles = replace(default_tiles(config, 1, isa_of(target), 1), events=events)
        func = layer_rule(reference_layer(config, 1, "layer"), target, tiles).mod["main"]
        mod = tvm.IRModule({"layer": func.with_attr("global_symbol", "layer")})
        self.call = tvm.compile(mod, target).jit()["layer"]
        ((_, shape),) = result_shapes(config, 1)
        self.out = tvm.runtime.empty(shape, config.dtype)
        self.weight = tvm.runtime.tensor(packed)

    def on(self, inputs: list[tvm.runtime.Tensor]) -> Callable[[], None]:
        """A call that takes the next of the inputs every time."""
        turn = itertools.cycle(inputs)
        return lambda: self.call(next(turn), self.weight, self.out)


def measure(config: LayerConfig, target: tvm.target.Target, pairs: int) -> dict[str, Any]:
    """Ratios over all rates, and where they cross 1."""
    rng = np.random.default_rng(0)
    shapes = dict(operand_shapes(config, 1))
    weight = rng.standard_normal(shapes["w0"]).astype(config.dtype)
    dense, events = (Kernel(config, weight, target, e) for e in (False, True))
    points = []
    for rate in RATES:
        drawn = [rng.random(shapes["x"]) < rate for _ in range(INPUTS)]
        inputs = [tvm.runtime.tensor(d.astype(np.uint8)) for d in drawn]
        results = []
        for kernel in (dense, events):
            kernel.on(inputs)()
            results.append(kernel.out.numpy())
        if not np.array_equal(*results):
            raise SystemExit(f"{config.name}: the two forms differ at rate {rate}")
        timed = time_pairs(events.on(inputs), dense.on(inputs), repeats=pairs)
        point = {"rate": rate, "ratio": timed.ratio, "spread": list(timed.spread)}
        point["events_us"] = 1e3 * statistics.median(timed.ours_ms)
        point["dense_us"] = 1e3 * statistics.median(timed.peer_ms)
        points.append(point)
    stage = config.stages[0]
    return {
        "case": config.name,
        "in_channels": stage.in_channels,
        "out_channels": stage.out_channels,
        "taps": len(stage.taps),
        "points": points,
        "break_even": crossing(points),
        "chosen_below": event_limit(config, isa_of(target)),
    }


def crossing(points: list[dict[str, Any]]) -> float | None:
    """Rate at which the ratio falls to 1 for good, by interpolation; None: beyond the last."""
    found = None
    for a, b in itertools.pairwise(points):
        if a["ratio"] >= 1 > b["ratio"]:
            share = (a["ratio"] - 1) / (a["ratio"] - b["ratio"])
            found = a["rate"] + share * (b["rate"] - a["rate"])
    if points[-1]["ratio"] >= 1:
        return None
    return 0.0 if found is None else round(found, 3)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratio over rate, one line a case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for row in rows:
        xs, ys = zip(*((p["rate"], p["ratio"]) for p in row["points"]))
        style = "--" if row["taps"] > 1 else "-"
        axes.plot(xs, ys, style, marker="o", markersize=3, label=row["case"])
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xlabel="firing rate of the input", ylabel="time of dense / time of event-driven")
    axes.set_yscale("log", base=2)
    axes.legend(fontsize=7, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu", help="cpu:mcpu=haswell for AVX2")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--pairs", type=int, default=7, help="interleaved pairs of blocks")
    parser.add_argument("--only", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="JSON file; the plot goes beside it")
    args = parser.parse_args(argv)
    prepare()
    target, rows = get_target(args.target).tvm_target, []
    with threads(1):
        apply_threads(1)
        for config in cases(args.dtype):
            if args.only and args.only not in config.name:
                continue
            row = measure(config, target, args.pairs)
            rows.append(row)
            ratios = "  ".join(f"{p['rate']:.2f}: {p['ratio']:.2f}" for p in row["points"])
            print(
                f"{row['case']:14s} {ratios}  crosses at {row['break_even']}, chosen below "
                f"{row['chosen_below']}",
                flush=True,
            )
    if args.out and rows:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"target": args.target, "isa": isa_of(target).name, "dtype": args.dtype}
        data = {"machine": machine(), **settings, "rows": rows}
        args.out.write_text(json.dumps(data, indent=1) + "\n")
        plot(rows, args.out.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
