"""Training: dense against tensor trains, accuracy over several seeds, time and memory of a step.

A narrow MS-ResNet learns two datasets that need no download, dense and as stt, ptt and htt with
fresh cores: ``digits`` (static 8×8 images) and ``moving_digits`` (event frames [T, N, 2, 16, 16],
made from the digits by a model of a moving sensor: synthetic, no recording). All runs of a dataset
have the same epochs, learning rate, weight decay and batches: a high rate and a weak decay, without
which chains of four cores lag behind in training loss (docs/training.md). The test accuracy is that
of the last weights. Times of a step are the medians of each run on a machine that may be busy: read
them as an order of magnitude.

Each run is written as soon as it is done, and not repeated when the script starts again.

    python benchmarks/training.py --out benchmarks/results/training_digits.json
    python benchmarks/training.py --cases digits-dense,digits-ptt --seeds 1 --epochs 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from cpu import machine

import ttsnn
from ttsnn import models
from ttsnn.artifact import replacing
from ttsnn.passes.training import SGD
from ttsnn.runtime.measure import peak_mb
from ttsnn.runtime.training.schedules import CosineLR

T, BATCH, RANKS = 4, 32, "rank=8"
LR, WEIGHT_DECAY = 0.4, 1e-4
DATASETS = {  # name → (image size, width of the first stage, epochs)
    "digits": (8, 24, 30),
    "moving_digits": (16, 16, 60),
}
MODES = ("dense", "stt", "ptt", "htt")
CASES = [f"{d}-{m}" for d in DATASETS for m in MODES]


def network(dataset: str, seed: int) -> torch.nn.Module:
    """Three stages of one block."""
    size, width, _ = DATASETS[dataset]
    spec = models.DATASETS[dataset]
    torch.manual_seed(seed)
    return models.MSResNet((1, 1, 1), (spec.channels, size, size), 10, T, spec.static, width=width)


def train(case: str, seed: int, epochs: int | None, threads: int) -> dict[str, Any]:
    """One run."""
    dataset, _, mode = case.rpartition("-")
    size, _, usual = DATASETS[dataset]
    data, test = (
        models.load_dataset(dataset, None, s, T=T, image_size=size) for s in ("train", "test")
    )
    epochs = epochs or usual
    trainer = ttsnn.Trainer(
        network(dataset, seed),
        data,
        batch=BATCH,
        epochs=epochs,
        optimizer=SGD(momentum=0.9, weight_decay=WEIGHT_DECAY),
        lr=LR,
        schedule=CosineLR(1.0, epochs=epochs),
        plan=None if mode == "dense" else RANKS,
        mode="ptt" if mode == "dense" else mode,
        init="fresh",
        seed=seed,
        threads=threads,
        progress=False,
    )
    losses, times = [], []
    while trainer.step < trainer.total_steps:
        start = time.perf_counter()
        losses.append(trainer.train_step().loss)
        times.append(time.perf_counter() - start)
    accuracy = trainer.evaluate(test)["accuracy"]
    return {
        "case": case,
        "seed": seed,
        "accuracy": accuracy,
        "loss": statistics.mean(losses[-trainer.order.steps_per_epoch :]),
        "ms_per_step": 1e3 * statistics.median(times),
        "peak_mb": peak_mb(trainer.train_step),
        "planned_mb": trainer.memory["planned_mb"],
        "parameters": sum(p.numel() for p in trainer.module.parameters()),
        "updates": len(losses),
        "epochs": epochs,
        "lr": LR,
        "weight_decay": WEIGHT_DECAY,
        "compile_s": trainer.compile_s,
        "threads": threads,
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Markdown: one line a case."""
    lines = [
        "| case | seeds | test accuracy, % | ms a step | peak MB | parameters |",
        "|---|---|---|---|---|---|",
    ]
    for case in CASES:
        own = [r for r in runs if r["case"] == case]
        if not own:
            continue
        accuracy = [100 * r["accuracy"] for r in own]
        spread = statistics.stdev(accuracy) if len(own) > 1 else 0.0
        memory = [r["peak_mb"] for r in own if r["peak_mb"] is not None]
        lines.append(
            f"| {case} | {len(own)} | {statistics.mean(accuracy):.2f} ± {spread:.2f} | "
            f"{statistics.median(r['ms_per_step'] for r in own):.1f} | "
            f"{statistics.median(memory) if memory else float('nan'):.1f} | "
            f"{own[0]['parameters']:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of the usual number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", default="training_digits.json")
    args = parser.parse_args()
    out = Path(args.out)
    found = json.loads(out.read_text()) if out.is_file() else {"machine": machine(), "runs": []}
    for seed in range(args.seeds):
        for case in args.cases.split(","):
            if any((r["case"], r["seed"]) == (case, seed) for r in found["runs"]):
                continue
            run = train(case, seed, args.epochs, args.threads)
            # another process may have added runs of other cases
            if out.is_file():
                found = json.loads(out.read_text())
            found["runs"].append(run)
            with replacing(out) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{case} seed {seed}: {100 * run['accuracy']:.2f} %", flush=True)
    print(table(found["runs"]))


if __name__ == "__main__":
    main()
