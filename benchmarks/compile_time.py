"""Seconds from a PyTorch network to its first result: ttsnn against torch.compile with frozen
weights and no caches; and seconds that ttsnn takes for a training step.

Each case runs in a process of its own, imports of the libraries excluded. ``wall`` is what one
waits, ``cpu`` the processor time of the process and of the compilers that it starts.

    python benchmarks/compile_time.py --out benchmarks/results/compile_time.json
    python benchmarks/compile_time.py --models ms_resnet18 --cases inference,inductor
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import ttsnn
from ttsnn import models
from ttsnn.driver import decompose, make_plan
from ttsnn.frontend import import_model
from ttsnn.passes.training import SGD, CrossEntropy, build_train_step
from ttsnn.runtime.peers.inductor import prepare
from ttsnn.runtime.training.code import build_training
from ttsnn.sources import ModelOptions, resolve

CASES = ("inference", "inductor", "train")


def task(model: str, case: str, plan: str, mode: str, batch: int) -> Callable[[], dict[str, float]]:
    """What is timed; it may return seconds of its steps."""
    source = resolve(model, ModelOptions(calibrated=False))
    x = source.example(batch, "float32", 0)
    if case == "train":
        mod = import_model(source.module, example=x)
        mod = decompose(mod, make_plan(mod, source.plan_to_apply(plan, mode), mode), init="fresh")

        def train() -> dict[str, float]:
            code = build_training(build_train_step(mod, CrossEntropy(), SGD(momentum=0.9)))
            code.place.machine(code.executable)
            return {}

        return train
    chosen = make_plan(import_model(source.module, example=x), source.plan_to_apply(plan, mode))
    network = models.apply_plan(source.module, chosen, init="fresh").eval()

    def inference() -> dict[str, float]:
        net = ttsnn.compile(network, x)
        net(x)
        return net.compile_s

    def inductor() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            prepare(network, x, torch.get_num_threads(), Path(folder))
        return {}

    return inference if case == "inference" else inductor


def cpu_seconds() -> float:
    """Of this process and its finished children."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def measure(model: str, case: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row of the results, of this process."""
    run = task(model, case, args.plan, args.mode, args.batch)
    wall, cpu = time.perf_counter(), cpu_seconds()
    steps = run()
    row = {"model": model, "case": case, "plan": args.plan, "mode": args.mode, "batch": args.batch}
    row |= {"wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu, "steps_s": steps}
    return row | {"cores": os.cpu_count(), "load_average": os.getloadavg()[0]}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--models", default="ms_resnet18,ms_resnet34")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--plan", default="paper")
    parser.add_argument("--mode", default="ptt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help="one case, in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.models, args.cases, args)))
        return
    rows = []
    for model in args.models.split(","):
        for case in args.cases.split(","):
            command = [sys.executable, "-W", "ignore", __file__, "--one", "--models", model]
            command += ["--cases", case, "--plan", args.plan, "--mode", args.mode]
            command += ["--batch", str(args.batch)]
            environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
            done = subprocess.run(
                command, env=environment, check=True, text=True, stdout=subprocess.PIPE
            )
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            row = rows[-1]
            print(f"{model} {case}: {row['wall_s']:.1f} s, processor {row['cpu_s']:.1f} s")
            if args.out is not None:
                args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
