"""Inference and training steps on a GPU: ttsnn against PyTorch, in two parts.

``compile`` needs TVM's compiler and nvcc (or NVRTC), but no GPU: it writes a folder with the
compiled cases. ``run`` needs a GPU, PyTorch, and TVM's *runtime* alone (as in an exported bundle,
or with ``TVM_USE_RUNTIME_LIB=1``): it measures each case beside PyTorch on the same network with
the same weights.

    python benchmarks/gpu.py compile cases --archs sm_80+sm_90
    python benchmarks/gpu.py compile cases --networks ms_resnet18 --modes ptt --batches 32
    python benchmarks/gpu.py run cases --out benchmarks/results/gpu.json

Times are medians between CUDA events around ``--inner`` calls, contenders taking turns. A share is
of the data sheet's rate (``LIMITS``), for the multiply-accumulates and the bytes that the compiled
program itself computes and touches. Nothing here has been measured on a GPU yet.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

LIMITS = {
    # name in torch.cuda.get_device_name: (float32, tf32, bf16 and fp16: FLOP/s; bytes/s), dense
    "H200": (67e12, 495e12, 989e12, 4.8e12),
    "H100": (67e12, 495e12, 989e12, 3.35e12),
    "A100": (19.5e12, 156e12, 312e12, 2.0e12),
}
PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class Case:
    """One compiled program."""

    phase: str
    network: str
    mode: str
    batch: int
    T: int
    precision: str
    dataset: str

    @property
    def name(self) -> str:
        """Of its files."""
        parts = (self.phase, self.network, self.mode, f"b{self.batch}", f"T{self.T}")
        return "-".join((*parts, self.precision))


def network_of(case: Case) -> torch.nn.Module:
    """The dense PyTorch network, random weights."""
    from ttsnn import models

    torch.manual_seed(0)
    return models.create(case.network, case.dataset, T=case.T)


def twin_of(case: Case, plan: dict | None) -> torch.nn.Module:
    """The PyTorch network that was compiled, without its weights."""
    from ttsnn import models
    from ttsnn.plans import TTPlan

    model = network_of(case)
    return model if plan is None else models.apply_plan(model, TTPlan.from_json(plan), init="fresh")


# -- compiling -------------------------------------------------------------------------------------


def compile_case(case: Case, folder: Path, archs: str) -> dict[str, Any]:
    """Write a case's files: the program, the weights, and what ``run`` wants to know."""
    from safetensors.torch import save_file

    from ttsnn import models
    from ttsnn.driver import build, make_plan
    from ttsnn.frontend import import_model
    from ttsnn.targets import get_target

    model = network_of(case).eval()
    x = models.example_input(model, batch=case.batch)
    plan = None
    if case.mode != "dense":
        plan = make_plan(import_model(model, example=x), "paper", case.mode)
        model = models.apply_plan(model, plan, init="fresh").eval()
    if case.phase == "inference":
        models.calibrate(model, x)
    program = import_model(model, example=x)
    target = get_target(f"cuda:arch={archs},precision={case.precision}")
    start = time.perf_counter()
    about: dict[str, Any] = {"plan": None if plan is None else plan.to_json()}
    if case.phase == "inference":
        net = build(program, target, name=case.name)
        net.save(folder / f"{case.name}.ttsnn")
        lowered = net.program
        about["macs"] = net.manifest.executed_macs * case.batch
    else:
        lowered, about["slots"] = training_step(program, target, folder / f"{case.name}.so")
        about["macs"] = sum(k.macs for k in target.kernels(lowered))
    about |= {"bytes": touched_bytes(lowered), "compile_s": time.perf_counter() - start}
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / f"{case.name}.safetensors")
    return asdict(case) | about


def training_step(program: Any, target: Any, path: Path) -> tuple[Any, dict[str, Any]]:
    """Compile one whole step to a library; its lowered form, and its arguments and results."""
    from ttsnn.passes.training import SGD, CrossEntropy, Manifest, build_train_step

    step = build_train_step(program, CrossEntropy(), SGD(momentum=0.9))
    signature = Manifest.of(step).functions["main"]
    lowered = target.lower_training(step)
    target.build(lowered).export_library(str(path))
    sides = {"arguments": signature.arguments, "results": signature.results}
    return lowered, {k: [asdict(s) for s in v] for k, v in sides.items()}


def touched_bytes(lowered: Any) -> int:
    """Bytes of the operands and results of all kernel calls of ``main``."""
    from tvm import relax

    total = 0

    def size(ty: Any) -> int:
        if isinstance(ty, relax.TupleType):
            return sum(size(f) for f in ty.fields)
        shape = getattr(ty, "shape", None)
        if not isinstance(shape, relax.ShapeExpr):
            return 0
        return int(np.prod([int(s) for s in shape.values])) * np.dtype(str(ty.dtype)).itemsize

    for block in lowered["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and str(value.op) in (
                "Op(relax.call_tir)",
                "relax.call_tir",
            ):
                total += size(value.ty) + sum(size(a.ty) for a in value.args[1].fields)
    return total


# -- running ---------------------------------------------------------------------------------------


def contenders(case: Case, about: dict[str, Any], folder: Path) -> dict[str, Callable[[], Any]]:
    """Name → a call of it."""
    from safetensors.torch import load_file

    from ttsnn.models import example_input, set_time_execution

    bf16 = case.precision in ("bf16", "fp16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = (
        case.precision == "tf32"
    )
    state = load_file(folder / f"{case.name}.safetensors")

    def fresh() -> torch.nn.Module:
        model = twin_of(case, about["plan"])
        model.load_state_dict(state)
        return model.cuda()

    x = example_input(network_of(case), batch=case.batch).cuda()
    labels = torch.arange(case.batch, device="cuda") % 10

    def eager(model: torch.nn.Module, call: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float16

        def infer() -> Any:
            with torch.inference_mode(), torch.autocast("cuda", dtype, enabled=bf16):
                return call(x)

        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

        def train() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype, enabled=bf16):
                loss = torch.nn.functional.cross_entropy(call(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        model.train(case.phase == "train")
        return train if case.phase == "train" else infer

    out: dict[str, Callable[[], Any]] = {"ttsnn": ours(case, about, folder, x, labels, state)}
    for name, how in (("eager_loop", "loop"), ("eager_folded", "folded"), ("inductor", "folded")):
        model = fresh()
        set_time_execution(model, how)
        out[name] = eager(model, torch.compile(model) if name == "inductor" else model)
    return out


def ours(
    case: Case, about: dict[str, Any], folder: Path, x: Any, labels: Any, state: dict[str, Any]
) -> Callable[[], Any]:
    """The compiled program."""
    import tvm
    import tvm_ffi

    import ttsnn

    if case.phase == "inference":
        net = ttsnn.load(folder / f"{case.name}.ttsnn")
        return lambda: net(x)
    from ttsnn.cuda.runtime import require_device

    device = require_device((), case.name)
    library = tvm.runtime.load_module(str(folder / f"{case.name}.so"))
    machine = tvm.runtime.vm.VirtualMachine(library, device)
    given = {"input": x, "label": labels}

    def first(slot: dict[str, Any]) -> torch.Tensor:
        dtype = getattr(torch, slot["dtype"])
        value = given.get(slot["role"])
        value = state.get(slot["name"]) if value is None else value
        if value is None:  # momentum starts at zero; a learning rate is a number
            value = torch.full(slot["shape"], 0.0 if slot["shape"] else 0.01)
        return value.to("cuda", dtype).reshape(slot["shape"]).contiguous()

    slots = about["slots"]["arguments"]
    values = {(s["role"], s["name"]): tvm_ffi.from_dlpack(first(s)) for s in slots}
    order = [(s["role"], s["name"]) for s in slots]
    names = [(s["role"], s["name"]) for s in about["slots"]["results"]]

    def step() -> Any:
        with tvm_ffi.use_torch_stream():
            results = dict(zip(names, machine["main"](*(values[k] for k in order)), strict=True))
        values.update({k: v for k, v in results.items() if k in values})
        return results

    return step


def measure(
    calls: dict[str, Callable[[], Any]], repeats: int, inner: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each, and the most memory in MB that its first calls took."""
    found: dict[str, dict[str, float]] = {}
    for name, call in calls.items():
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        taken = torch.cuda.max_memory_allocated()
        if name == "ttsnn":  # its memory is not PyTorch's
            taken = before - torch.cuda.mem_get_info()[0]
        found[name] = {"memory_mb": taken / 2**20}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(inner):
                call()
            stop.record()
            torch.cuda.synchronize()
            times[name].append(start.elapsed_time(stop) / inner)
    for name, values in times.items():
        found[name] |= {"ms": statistics.median(values), "spread": max(values) / min(values)}
    return found


def shares(case: Case, about: dict[str, Any], ms: float) -> dict[str, float]:
    """Of the data sheet's arithmetic and bandwidth; empty for a GPU that is not listed."""
    device = torch.cuda.get_device_name()
    limit = next((v for k, v in LIMITS.items() if k in device), None)
    if limit is None:
        return {}
    rate = limit[{"fp32": 0, "tf32": 1}.get(case.precision, 2)]
    seconds = ms / 1e3
    return {
        "of_flops": 2 * about["macs"] / seconds / rate,
        "of_bandwidth": about["bytes"] / seconds / limit[3],
    }


def run_case(about: dict[str, Any], folder: Path, repeats: int, inner: int) -> dict[str, Any]:
    """Measure one case."""
    case = Case(**{k: about[k] for k in Case.__dataclass_fields__})
    calls = contenders(case, about, folder)
    row: dict[str, Any] = asdict(case) | {"compile_s": about["compile_s"]}
    if case.phase == "inference":
        mine, theirs = calls["ttsnn"](), calls["eager_folded"]()
        row["max_abs_error"] = float((mine.float() - theirs.float()).abs().max())
    row["results"] = measure(calls, repeats, inner)
    row["shares"] = shares(case, about, row["results"]["ttsnn"]["ms"])
    return row


def main() -> int:
    """Both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    first = parts.add_parser("compile", help="on any machine with TVM's compiler and nvcc")
    first.add_argument("folder", type=Path)
    first.add_argument("--archs", default="sm_80+sm_90")
    first.add_argument("--phases", default="inference,train")
    first.add_argument("--networks", default="ms_resnet18,ms_resnet34")
    first.add_argument("--modes", default="dense,stt,ptt,htt")
    first.add_argument("--batches", default="1,32,128")
    first.add_argument("--timesteps", default="4,6")
    first.add_argument("--precisions", default=",".join(PRECISIONS))
    first.add_argument("--dataset", default="cifar10")
    second = parts.add_parser("run", help="on the machine with the GPU")
    second.add_argument("folder", type=Path)
    second.add_argument("--out", type=Path)
    second.add_argument("--repeats", type=int, default=20)
    second.add_argument("--inner", type=int, default=10)
    args = parser.parse_args()
    index = args.folder / "cases.json"
    if args.part == "compile":
        args.folder.mkdir(parents=True, exist_ok=True)
        grid = itertools.product(
            args.phases.split(","),
            args.networks.split(","),
            args.modes.split(","),
            map(int, args.batches.split(",")),
            map(int, args.timesteps.split(",")),
            args.precisions.split(","),
        )
        cases = [Case(*values, args.dataset) for values in grid]
        done = []
        for case in cases:
            done.append(compile_case(case, args.folder, args.archs))
            print(f"{case.name}: {done[-1]['compile_s']:.0f} s", flush=True)
            index.write_text(json.dumps(done, indent=1))
        return 0
    if not torch.cuda.is_available():
        print("benchmarks/gpu.py run: PyTorch sees no GPU here; not measured")
        return 2
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "rows": []}
    for about in json.loads(index.read_text()):
        row = run_case(about, args.folder, args.repeats, args.inner)
        report["rows"].append(row)
        found = ", ".join(f"{k} {v['ms']:.3f} ms" for k, v in row["results"].items())
        print(f"{Case(**{k: about[k] for k in Case.__dataclass_fields__}).name}: {found}")
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
