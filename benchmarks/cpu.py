"""Inference on the CPU: ttsnn against PyTorch, torch.compile and ONNX Runtime.

Runs ``ttsnn compare`` for the networks, modes, batch sizes and thread counts asked for; writes
one JSON file with the machine's description, and prints the Markdown table that
``docs/benchmarks.md`` quotes. Ratios are medians of interleaved pairs, peer / ours.

    python benchmarks/cpu.py --out benchmarks/results/cpu.json
    python benchmarks/cpu.py --modes ptt --batches 1 --against eager,onnxruntime
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

import ttsnn
from ttsnn.sources import ModelOptions, resolve

PEERS = (
    "eager_loop,eager,eager_channels_last,inductor,onnxruntime,"
    "dense_loop,dense_eager,dense_eager_channels_last,dense_onnxruntime"
)
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
        "cores": len(os.sched_getaffinity(0)),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tvm": tvm.__version__,
        "onnxruntime": onnxruntime.__version__,
        "ttsnn": ttsnn.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "load_average": os.getloadavg()[0],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: one line a case, ratios to each peer."""
    peers = list(dict.fromkeys(p for row in rows for p in row["time_ratio"]))
    head = ["network", "mode", "batch", "threads", "ttsnn ms", "GFLOP/s", *peers]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for row in rows:
        ms = row["time_ms"]["ttsnn"]
        batch = row["batch"]
        cells = [row["model"], row["mode"] or "dense", batch, row["threads"], f"{ms:.2f}"]
        cells.append(f"{2e-6 * row['executed_macs'] * batch / ms:.0f}")
        for peer in peers:
            ratio, spread = row["time_ratio"].get(peer), row["time_spread"].get(peer)
            text = "" if ratio is None else f"{ratio:.2f} ({spread[0]:.2f}–{spread[1]:.2f})"
            cells.append(text)
        lines.append(" | ".join(str(c) for c in cells))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Run the cases, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default="ms_resnet18")
    parser.add_argument("--modes", default="ptt,stt,htt,dense")
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--plan", default="paper")
    parser.add_argument("--against", default=PEERS)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each peer's pairs")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    cases = itertools.product(
        args.models.split(","), args.modes.split(","), args.batches.split(","),
        args.threads.split(","),
    )  # fmt: skip
    for model, mode, batch, threads in cases:
        options = ModelOptions(dataset=args.dataset, calibrated=False)
        result = ttsnn.compare(
            resolve(model, options),
            plan=None if mode == "dense" else args.plan,
            mode=mode if mode != "dense" else "ptt",
            batch=int(batch),
            threads=int(threads),
            against=args.against,
            seconds=args.seconds,
        )
        if not result["ok"]:
            raise SystemExit(f"{model} {mode}: does not agree with PyTorch: {result}")
        row = {k: result[k] for k in KEPT}
        row |= {"model": model, "mode": None if mode == "dense" else mode}
        row |= {"batch": int(batch), "threads": int(threads)}
        rows.append(row)
        print(table(rows[-1:]), flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            temporary = args.out.with_suffix(".tmp")
            temporary.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))
            temporary.replace(args.out)
    print()
    print(table(rows))


if __name__ == "__main__":
    main()
