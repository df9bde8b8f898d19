"""Inference and training steps on a GPU: ttsnn against PyTorch, in two parts, and an estimate.

``compile`` needs TVM's compiler and nvcc (or NVRTC), but no GPU: it writes a folder with the
compiled cases. ``run`` needs a GPU, PyTorch, and TVM's *runtime* alone (as in an exported bundle,
or with ``TVM_USE_RUNTIME_LIB=1``): it measures each case beside PyTorch on the same network with
the same weights.

    python benchmarks/gpu.py compile cases --archs sm_80+sm_90
    python benchmarks/gpu.py compile cases --networks ms_resnet18 --modes ptt --batches 32
    python benchmarks/gpu.py run cases --out benchmarks/results/gpu.json

``roofline`` prints, for one case, what the kernels compute and touch, and the time below which a
GPU of the data sheet cannot stay:

    python benchmarks/gpu.py roofline --network ms_resnet34 --mode ptt --batch 128 --gpu H100

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
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

LIMITS = {
    # name in torch.cuda.get_device_name: (float32, tf32, bf16 and fp16: FLOP/s; bytes/s), dense
    "H200": (67e12, 495e12, 989e12, 4.8e12),
    "H100": (67e12, 495e12, 989e12, 3.35e12),
    "A100": (19.5e12, 156e12, 312e12, 2.0e12),
}
PRECISIONS = ("fp32", "tf32", "bf16")
RATE_OF = {"fp32": 0, "tf32": 1}
PEERS = ("eager_loop", "eager_folded", "inductor")
LAUNCH = 2e-6  # seconds of the smallest kernel


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


def imported(case: Case, rule: str) -> tuple[torch.nn.Module, Any, Any]:
    """The network with a plan of that rule, the program, and the plan (None for dense)."""
    from ttsnn import models
    from ttsnn.driver import make_plan
    from ttsnn.frontend import import_model

    model = network_of(case).eval()
    x = models.example_input(model, batch=case.batch)
    plan = None
    if case.mode != "dense":
        plan = make_plan(import_model(model, example=x), rule, case.mode)
        model = models.apply_plan(model, plan, init="fresh").eval()
    if case.phase == "inference":
        models.calibrate(model, x)
    return model, import_model(model, example=x), plan


def compile_case(
    case: Case, folder: Path, archs: str, rule: str = "paper", target_name: str = "cuda"
) -> dict[str, Any]:
    """Write a case's files: the program, the weights, and what ``run`` wants to know."""
    from safetensors.torch import save_file

    from ttsnn.driver import build
    from ttsnn.passes.traffic import traffic
    from ttsnn.targets import get_target

    model, program, plan = imported(case, rule)
    target = get_target(f"{target_name}:arch={archs},precision={case.precision}")
    start = time.perf_counter()
    about: dict[str, Any] = {"plan": None if plan is None else plan.to_json()}
    if case.phase == "inference":
        net = build(program, target, name=case.name)
        net.save(folder / f"{case.name}.ttsnn")
        lowered = net.program
        about["macs"] = net.manifest.executed_macs * case.batch
    else:
        lowered, about["slots"] = training_step(program, target, folder / f"{case.name}.so")
        about["macs"] = sum(k.macs for k in traffic(lowered))
    about["bytes"] = sum(k.bytes for k in traffic(lowered))
    about["compile_s"] = time.perf_counter() - start
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


# -- running ---------------------------------------------------------------------------------------


def contenders(
    case: Case, about: dict[str, Any], folder: Path, device: str, wanted: tuple[str, ...]
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """Name → what makes a call of it."""
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
        return model.to(device)

    x = example_input(network_of(case), batch=case.batch).to(device)
    labels = torch.arange(case.batch, device=device) % 10

    def eager(model: torch.nn.Module, call: Callable[[torch.Tensor], Any]) -> Callable[[], Any]:
        dtype = torch.bfloat16 if case.precision == "bf16" else torch.float16

        def infer() -> Any:
            with torch.inference_mode(), torch.autocast(device, dtype, enabled=bf16):
                return call(x)

        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

        def train() -> Any:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, dtype, enabled=bf16):
                loss = torch.nn.functional.cross_entropy(call(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        model.train(case.phase == "train")
        return train if case.phase == "train" else infer

    def peer(name: str) -> Callable[[], Any]:
        model = fresh()
        set_time_execution(model, "loop" if name == "eager_loop" else "folded")
        return eager(model, torch.compile(model) if name == "inductor" else model)

    made: dict[str, Callable[[], Callable[[], Any]]] = {
        "ttsnn": lambda: ours(case, about, folder, x, labels, state),
        **{name: partial(peer, name) for name in PEERS},
    }
    return {name: make for name, make in made.items() if name in wanted}


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
    from ttsnn.cuda import emulator
    from ttsnn.cuda.runtime import require_device

    if x.is_cuda:
        device = require_device((), case.name)
    else:
        emulator.enable()
        device = tvm.cuda(0)
    library = tvm.runtime.load_module(str(folder / f"{case.name}.so"))
    machine = tvm.runtime.vm.VirtualMachine(library, device)
    given = {"input": x, "label": labels}

    def first(slot: dict[str, Any]) -> torch.Tensor:
        dtype = getattr(torch, slot["dtype"])
        value = given.get(slot["role"])
        value = state.get(slot["name"]) if value is None else value
        if value is None:  # momentum starts at zero; a learning rate is a number
            value = torch.full(slot["shape"], 0.0 if slot["shape"] else 0.01)
        return value.to(x.device, dtype).reshape(slot["shape"]).contiguous()

    def shared(value: torch.Tensor) -> Any:
        if value.is_cuda:
            return tvm_ffi.from_dlpack(value)
        return tvm.runtime.tensor(value.numpy(), device)

    slots = about["slots"]["arguments"]
    values = {(s["role"], s["name"]): shared(first(s)) for s in slots}
    order = [(s["role"], s["name"]) for s in slots]
    names = [(s["role"], s["name"]) for s in about["slots"]["results"]]

    def step() -> Any:
        with tvm_ffi.use_torch_stream() if x.is_cuda else nullcontext():
            results = dict(zip(names, machine["main"](*(values[k] for k in order)), strict=True))
        values.update({k: v for k, v in results.items() if k in values})
        loss = next(v for (role, _), v in results.items() if role == "loss")
        return torch.from_dlpack(loss) if x.is_cuda else torch.as_tensor(loss.numpy())

    return step


class Clock:
    """Times calls on a GPU between events; on a CPU, for trying the benchmark out, by the clock."""

    def __init__(self, device: str) -> None:
        self.gpu = device == "cuda"

    def wait(self) -> None:
        """Until the GPU has done everything."""
        if self.gpu:
            torch.cuda.synchronize()

    def milliseconds(self, call: Callable[[], Any], inner: int) -> float:
        """Of one of ``inner`` calls."""
        if not self.gpu:
            begin = time.perf_counter()
            for _ in range(inner):
                call()
            return (time.perf_counter() - begin) * 1e3 / inner
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / inner

    def memory_of(self, call: Callable[[], Any], own: bool) -> float:
        """The most MB that some first calls took; ``own``: by PyTorch's allocator. 0 on a CPU."""
        if not self.gpu:
            call()
            return 0.0
        before = torch.cuda.mem_get_info()[0]
        torch.cuda.reset_peak_memory_stats()
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        taken = torch.cuda.max_memory_allocated()
        return (taken if own else before - torch.cuda.mem_get_info()[0]) / 2**20


def measure(
    makers: dict[str, Callable[[], Callable[[], Any]]], clock: Clock, repeats: int, inner: int
) -> tuple[dict[str, dict[str, float]], dict[str, Any], dict[str, str]]:
    """Median milliseconds and memory of each; first results; errors of those that cannot run."""
    found: dict[str, dict[str, float]] = {}
    calls, first, errors = {}, {}, {}
    for name, make in makers.items():
        try:
            call = make()
            first[name] = call()
            clock.wait()
            found[name] = {"memory_mb": clock.memory_of(call, name != "ttsnn")}
            calls[name] = call
        except Exception as e:  # a peer that is missing, or runs out of memory, is a result too
            errors[name] = f"{type(e).__name__}: {e}"[:500]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(clock.milliseconds(call, inner))
    for name, values in times.items():
        found[name] |= {"ms": statistics.median(values), "spread": max(values) / min(values)}
    return found, first, errors


def shares(case: Case, about: dict[str, Any], ms: float, device: str) -> dict[str, float]:
    """Of the data sheet's arithmetic and bandwidth; empty for a device that is not listed."""
    limit = next((v for k, v in LIMITS.items() if k in device), None)
    if limit is None:
        return {}
    rate = limit[RATE_OF.get(case.precision, 2)]
    seconds = ms / 1e3
    return {
        "of_flops": 2 * about["macs"] / seconds / rate,
        "of_bandwidth": about["bytes"] / seconds / limit[3],
    }


def run_case(
    about: dict[str, Any], folder: Path, args: argparse.Namespace, device: str
) -> dict[str, Any]:
    """Measure one case."""
    case = case_of(about)
    makers = contenders(case, about, folder, args.device, tuple(args.contenders.split(",")))
    found, first, errors = measure(makers, Clock(args.device), args.repeats, args.inner)
    row: dict[str, Any] = asdict(case) | {"compile_s": about["compile_s"], "results": found}
    if case.phase == "inference" and {"ttsnn", "eager_folded"} <= first.keys():
        mine, theirs = first["ttsnn"], first["eager_folded"]
        row["max_abs_error"] = float((mine.float() - theirs.float()).abs().max())
    elif {"ttsnn", "eager_folded"} <= first.keys():
        mine, theirs = (float(first[k].detach()) for k in ("ttsnn", "eager_folded"))
        row["loss_error"] = abs(mine - theirs)
    if "ttsnn" in found:
        row["shares"] = shares(case, about, found["ttsnn"]["ms"], device)
    return row | ({"errors": errors} if errors else {})


def case_of(about: dict[str, Any]) -> Case:
    """The case that an entry of ``cases.json`` is of."""
    return Case(**{k: about[k] for k in Case.__dataclass_fields__})


def run(args: argparse.Namespace) -> int:
    """Measure all cases of a folder; what is measured is written after each."""
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu.py run: PyTorch sees no GPU here; not measured")
        return 2
    index = args.folder / "cases.json"
    if not index.is_file():
        print(f"benchmarks/gpu.py run: {index} is missing; write it with `gpu.py compile`")
        return 2
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU, emulated GPU"
    report: dict[str, Any] = {"device": device, "torch": torch.__version__, "rows": []}
    for about in json.loads(index.read_text()):
        row = run_case(about, args.folder, args, device)
        report["rows"].append(row)
        found = [f"{k} {v['ms']:.3f} ms" for k, v in row["results"].items()]
        found += [f"{k} {v}" for k, v in row.get("errors", {}).items()]
        print(f"{case_of(about).name}: {', '.join(found)}", flush=True)
        if args.out is not None:
            args.out.write_text(json.dumps(report, indent=1))
    return 0


def compile_all(args: argparse.Namespace) -> int:
    """Write all cases of the grid."""
    args.folder.mkdir(parents=True, exist_ok=True)
    grid = itertools.product(
        args.phases.split(","),
        args.networks.split(","),
        args.modes.split(","),
        map(int, args.batches.split(",")),
        map(int, args.timesteps.split(",")),
        args.precisions.split(","),
    )
    done = []
    for case in [Case(*values, args.dataset) for values in grid]:
        done.append(compile_case(case, args.folder, args.archs, args.plan, args.target))
        print(f"{case.name}: {done[-1]['compile_s']:.0f} s", flush=True)
        (args.folder / "cases.json").write_text(json.dumps(done, indent=1))
    return 0


def roofline(args: argparse.Namespace) -> int:
    """Print what bounds each kind of kernel of one case, on a GPU of the data sheets."""
    from ttsnn.passes.traffic import traffic
    from ttsnn.passes.training import SGD, CrossEntropy, build_train_step
    from ttsnn.targets import get_target

    case = Case(
        args.phase,
        args.network,
        args.mode,
        args.batch,
        args.timesteps,
        args.precision,
        args.dataset,
    )
    _, program, _ = imported(case, args.plan)
    target = get_target(f"cuda:arch=sm_90,precision={case.precision}")
    if case.phase == "train":
        step = build_train_step(program, CrossEntropy(), SGD(momentum=0.9))
        lowered = target.lower_training(step)
    else:
        lowered = target.lower(program)
    limit = LIMITS[args.gpu]
    rates = limit[RATE_OF.get(case.precision, 2)] / 2, limit[3]
    rows: dict[str, list[float]] = {}
    for k in traffic(lowered):
        row = rows.setdefault(k.rule, [0, 0, 0, 0])
        for i, value in enumerate((k.calls, k.bytes, k.macs, k.seconds(*rates, LAUNCH))):
            row[i] += value
    print(f"{case.name} on {args.gpu}: a time that no run can beat, by kind of kernel")
    print(f"{'kind':18} {'calls':>6} {'GB':>9} {'GMAC':>9} {'ms':>8}")
    total = [sum(column) for column in zip(*rows.values())]
    ordered = sorted(rows.items(), key=lambda item: -item[1][3])
    for name, (calls, size, macs, seconds) in [*ordered, ("all", total)]:
        print(f"{name:18} {calls:6} {size / 1e9:9.2f} {macs / 1e9:9.1f} {seconds * 1e3:8.2f}")
    return 0


def main() -> int:
    """Both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    first = parts.add_parser("compile", help="on any machine with TVM's compiler and nvcc")
    first.add_argument("folder", type=Path)
    first.add_argument("--archs", default="sm_80+sm_90")
    first.add_argument("--target", choices=("cuda", "cuda-emulated"), default="cuda")
    first.add_argument("--plan", default="paper", help="rule of the ranks")
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
    second.add_argument("--contenders", default=",".join(("ttsnn", *PEERS)))
    second.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: try the benchmark out on cases for cuda-emulated; its times mean nothing",
    )
    third = parts.add_parser("roofline", help="lower bounds from sizes and data sheets, no GPU")
    third.add_argument("--gpu", choices=LIMITS, default="H100")
    third.add_argument("--phase", choices=("inference", "train"), default="train")
    third.add_argument("--network", default="ms_resnet34")
    third.add_argument("--mode", default="ptt")
    third.add_argument("--plan", default="paper", help="rule of the ranks")
    third.add_argument("--batch", type=int, default=128)
    third.add_argument("--timesteps", type=int, default=6)
    third.add_argument("--precision", default="fp32")
    third.add_argument("--dataset", default="ncaltech101")
    args = parser.parse_args()
    return {"compile": compile_all, "run": run, "roofline": roofline}[args.part](args)


if __name__ == "__main__":
    raise SystemExit(main())
