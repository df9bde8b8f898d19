"""Time of inference against batch and timesteps: is it the same for each image and timestep?

One thread. Every pair (batch, T) is compiled for its own; then all are timed in turn, round after
round, so that a change of the machine's speed meets them alike. A static image's stem and the
classifier run once whatever T is, so time grows as ``a + b · T`` with a small ``a``: T = 1 is
expected to take more than a T-th of T.

    python benchmarks/linearity.py --out benchmarks/results/linearity.json
    python benchmarks/linearity.py --batches 1,2,4 --timesteps 4 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import ttsnn
from ttsnn.sources import ModelOptions, resolve


def compiled(args: argparse.Namespace, batch: int, T: int) -> tuple[Any, torch.Tensor]:
    """The network for one batch and T, and its input."""
    source = resolve(args.model, ModelOptions(timesteps=T, calibrated=True))
    x = source.example(batch, "float32", 0)
    path = args.cache / f"{args.model}_{args.mode}_{batch}_{T}.ttsnn" if args.cache else None
    if path is None or not path.exists():
        options = {"plan": args.plan, "mode": args.mode, "target": "cpu:num-cores=1"}
        net = ttsnn.compile(source.module, x, out=path, **options)
        if path is None:
            return net, x
    return ttsnn.load(path), x


def pairs(args: argparse.Namespace) -> list[tuple[int, int]]:
    """(batch, T): all batches at the first T, all T at the middle batch."""
    batches, steps = ([int(v) for v in s.split(",")] for s in (args.batches, args.timesteps))
    found = [(n, args.T) for n in batches] + [(args.batch, t) for t in steps]
    return list(dict.fromkeys(found))


def measure(nets: dict[tuple[int, int], Any], rounds: int) -> dict[tuple[int, int], list[float]]:
    """Milliseconds of each call, by (batch, T)."""
    times: dict[tuple[int, int], list[float]] = {key: [] for key in nets}
    for net, x in nets.values():
        net(x, threads=1)
    for _ in range(rounds):
        for key, (net, x) in nets.items():
            for _ in range(max(1, 8 // (key[0] * key[1]))):  # short calls several times
                start = time.perf_counter()
                net(x, threads=1)
                times[key].append(1e3 * (time.perf_counter() - start))
    return times


def plot(rows: list[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """Milliseconds for an image and timestep, against batch and against T."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axes, x, fixed, value in (
        (panels[0], "batch", "T", args.T),
        (panels[1], "T", "batch", args.batch),
    ):
        chosen = sorted((r for r in rows if r[fixed] == value), key=lambda r: r[x])
        axes.plot([r[x] for r in chosen], [r["ms_image_step"] for r in chosen], "o-")
        axes.set_xlabel(f"{x} ({fixed} = {value})")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("ms for an image and timestep")
    figure.suptitle(f"{args.mode} {args.model}, one thread")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="ms_resnet18")
    parser.add_argument("--plan", default="paper")
    parser.add_argument("--mode", default="ptt")
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--timesteps", default="1,2,4,6,8")
    parser.add_argument("--T", type=int, default=4, help="of the series over batches")
    parser.add_argument("--batch", type=int, default=8, help="of the series over timesteps")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cache", type=Path, help="folder that keeps the compiled networks")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.cache is not None:
        args.cache.mkdir(parents=True, exist_ok=True)
    nets = {key: compiled(args, *key) for key in pairs(args)}
    if args.rounds == 0:
        return
    times = measure(nets, args.rounds)
    base = statistics.median(times[args.batch, args.T]) / (args.batch * args.T)
    rows = []
    for (batch, T), values in times.items():
        ms = statistics.median(values)
        row = {"batch": batch, "T": T, "ms": ms, "ms_image_step": ms / (batch * T)}
        rows.append(row | {"relative": row["ms_image_step"] / base})
        print(f"batch {batch:3d} T {T}: {ms:8.2f} ms, {rows[-1]['relative']:.3f} of the middle")
    if args.out is not None:
        settings = {k: getattr(args, k) for k in ("model", "plan", "mode", "rounds")}
        args.out.write_text(json.dumps(settings | {"rows": rows}, indent=1) + "\n")
        plot(rows, args, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
