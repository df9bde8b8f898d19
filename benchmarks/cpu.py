"""Inference and training steps on the CPU: ttsnn against PyTorch, torch.compile and ONNX Runtime.

Runs ``ttsnn compare`` for every case asked for: phase × network × mode × batch × threads. After
each case one JSON file is written anew, with the machine's description and the peak that
``peak.py`` measures beside the case; cases that the file has already are skipped, so a long run
may be cut into pieces by calling it again with ``--limit``. Ratios are medians of interleaved
pairs, peer / ours. At the end: a Markdown table, and a plot beside the JSON file.

    python benchmarks/cpu.py --out benchmarks/results/cpu.json
    python benchmarks/cpu.py --out benchmarks/results/cpu.json --limit 3
    python benchmarks/cpu.py --modes ptt --batches 1 --against eager,onnxruntime
    python benchmarks/cpu.py --phase train --models spiking_vgg9 --plan rank=16 --batches 8
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peak import peak_gflops

import ttsnn
from ttsnn.cpus import available_cpus
from ttsnn.sources import ModelOptions, resolve

PEERS = (
    "eager_loop,eager,eager_channels_last,inductor,onnxruntime,"
    "dense_loop,dense_eager,dense_eager_channels_last,dense_inductor,dense_onnxruntime"
)
CASE = ("phase", "model", "plan", "mode", "batch", "threads", "calibrate")
KEPT = (
    "max_rel_error", "flipped_spikes", "spike_places", "agreement", "time_ms", "time_ratio",
    "time_spread", "time_pairs", "peak_memory_mb", "artifact_bytes", "compile_s",
    "executed_macs", "flops", "params", "skipped", "weights", "input_shape",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    import onnxruntime
    import tvm

    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": available_cpus(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tvm": tvm.__version__,
        "onnxruntime": onnxruntime.__version__,
        "ttsnn": ttsnn.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[0],
    }


def cases(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The cases in order; the dense network has no plan."""
    lists = (args.phase, args.models, args.modes, args.batches, args.threads)
    for phase, model, mode, batch, threads in itertools.product(*(x.split(",") for x in lists)):
        plan, form = (None, None) if mode == "dense" else (args.plan, mode)
        calibrate = args.calibrate and phase == "inference"
        values = (phase, model, plan, form, int(batch), int(threads), calibrate)
        yield dict(zip(CASE, values, strict=True))


def measure(case: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One row of the results.

    Raises:
        SystemExit: where the compiled network does not agree with PyTorch.
    """
    options = ModelOptions(dataset=args.dataset, calibrated=False)
    result = ttsnn.compare(
        resolve(case["model"], options),
        plan=case["plan"],
        mode=case["mode"] or "ptt",
        batch=case["batch"],
        threads=case["threads"],
        against=args.against,
        seconds=args.seconds,
        phase=case["phase"],
        calibrate=case["calibrate"],
    )
    if not result["ok"]:
        raise SystemExit(f"{case}: does not agree with PyTorch: {result}")
    row = case | {k: result[k] for k in KEPT if k in result}
    row["peak_gflops"] = peak_gflops(case["threads"])
    if "executed_macs" in row:
        flops = 2e-6 * row["executed_macs"] * case["batch"]
        row["gflops"] = flops / row["time_ms"]["ttsnn"]
        row["share_of_peak"] = row["gflops"] / row["peak_gflops"]
    row["compile_total_s"] = sum(row["compile_s"].values())
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a case, ratios to each peer."""
    peers = list(dict.fromkeys(p for row in rows for p in row["time_ratio"]))
    head = ["phase", "network", "mode", "batch", "threads", "ttsnn ms", "GFLOP/s", "of peak"]
    head += ["MB", "compile s", *peers]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        mode = (row["mode"] or "dense") + (" calibrated" if row["calibrate"] else "")
        cells = [row["phase"], row["model"], mode, row["batch"], row["threads"]]
        cells.append(f"{row['time_ms']['ttsnn']:.2f}")
        known = "gflops" in row
        cells += [f"{row['gflops']:.0f}", f"{row['share_of_peak']:.0%}"] if known else ["", ""]
        memory = row["peak_memory_mb"].get("ttsnn")
        cells += ["" if memory is None else f"{memory:.1f}", f"{row['compile_total_s']:.1f}"]
        for peer in peers:
            ratio, spread = row["time_ratio"].get(peer), row["time_spread"].get(peer)
            text = "" if ratio is None else f"{ratio:.2f} ({spread[0]:.2f}–{spread[1]:.2f})"
            cells.append(text)
        lines.append(" | ".join(str(c) for c in cells))
    return "\n".join(f"| {line} |" for line in lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios to the peers, a group of bars for each case, one panel for each phase."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    phases = list(dict.fromkeys(row["phase"] for row in rows))
    peers = list(dict.fromkeys(p for row in rows for p in row["time_ratio"]))
    most = max(sum(r["phase"] == p for r in rows) for p in phases)
    size = (max(7.0, 1.1 * most + 2), 4.5 * len(phases))
    figure, panels = plt.subplots(len(phases), 1, figsize=size, squeeze=False)
    colors = plt.get_cmap("tab10")
    for axes, phase in zip(panels[:, 0], phases, strict=True):
        chosen = [r for r in rows if r["phase"] == phase]
        for i, peer in enumerate(peers):
            found = [
                (k, r["time_ratio"][peer]) for k, r in enumerate(chosen) if peer in r["time_ratio"]
            ]
            if found:
                places = [k + (i + 0.5) / (len(peers) + 1) for k, _ in found]
                heights = [v for _, v in found]
                axes.bar(places, heights, 1 / (len(peers) + 1), color=colors(i % 10), label=peer)
        axes.axhline(1, color="black", linewidth=0.8)
        names = [
            f"{r['model']}\n{r['mode'] or 'dense'}, batch {r['batch']}\n{r['threads']} thread(s)"
            + ("\ncalibrated" if r["calibrate"] else "")
            for r in chosen
        ]
        axes.set_xticks([k + 0.5 for k in range(len(chosen))], names, fontsize=7)
        axes.set_yscale("log", base=2)
        axes.set(title=phase, ylabel="time of the peer / time of ttsnn")
        axes.legend(fontsize=6, ncols=5)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read(path: Path | None) -> list[dict[str, Any]]:
    """Rows of an earlier run that this one goes on with."""
    if path is None or not path.exists():
        return []
    rows = json.loads(path.read_text())["rows"]
    # files from before there were phases
    return [r for r in rows if all(key in r for key in CASE)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The JSON file, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
    temporary.replace(path)


def main() -> None:
    """Run the cases that are missing, write, print, plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--phase", default="inference", help="inference,train")
    parser.add_argument("--models", default="ms_resnet18", help="ms_resnet34, spiking_vgg9, …")
    parser.add_argument("--modes", default="ptt,stt,htt,dense")
    parser.add_argument("--batches", default="1,8,32")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--plan", default="paper", help="a rule for networks without a paper")
    parser.add_argument("--against", default=PEERS)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each peer's pairs")
    parser.add_argument(
        "--calibrate", action="store_true", help="event-driven layers, by the input"
    )
    parser.add_argument("--limit", type=int, help="stop after this many new cases")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rows, new = read(args.out), 0
    done = {tuple(row[key] for key in CASE) for row in rows}
    for case in cases(args):
        if tuple(case.values()) in done:
            continue
        if new == args.limit:
            print(f"stopped after {new} cases; call again to go on")
            break
        new += 1
        rows.append(measure(case, args))
        print(table(rows[-1:]), flush=True)
        if args.out:
            write(args.out, rows)
    print()
    print(table(rows))
    if args.out and rows:
        plot(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
