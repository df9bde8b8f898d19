"""Inference and training steps on a GPU: ttsnn against PyTorch, in two parts; an estimate; a plot.

``compile`` needs TVM's compiler and nvcc (or NVRTC), but no GPU: it writes a folder with the
compiled cases. ``run`` needs a GPU, PyTorch, and TVM's *runtime* alone (as in an exported bundle,
or with ``TVM_USE_RUNTIME_LIB=1``): it measures each case beside PyTorch on the same network with
the same weights.

    python benchmarks/gpu.py compile cases --archs sm_80+sm_90
    python benchmarks/gpu.py compile cases --networks ms_resnet18 --modes ptt --batches 32
    python benchmarks/gpu.py run cases --out benchmarks/results/gpu.json
    python benchmarks/gpu.py plot benchmarks/results/gpu.json

Peers: ``eager_loop``, layer by layer in a loop over time, as published code runs;
``eager_folded``, time in the batch; ``inductor``, that by ``torch.compile``; ``spikingjelly``,
time in the batch with SpikingJelly's neurons (Triton's on a GPU), where it is installed.

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
PEERS = ("eager_loop", "eager_folded", "inductor", "spikingjelly")
LABEL = ("network", "mode", "batch", "T", "precision")
LR, MOMENTUM = 0.01, 0.9
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


def lowered_of(case: Case, program: Any, target: Any) -> Any:
    """The kernels of a case, before they are compiled."""
    from ttsnn.passes.training import SGD, CrossEntropy, build_train_step

    if case.phase == "inference":
        return target.lower(program)
    step = build_train_step(program, CrossEntropy(), SGD(momentum=MOMENTUM))
    return target.lower_training(step)


def compile_case(
    case: Case, folder: Path, archs: str, rule: str = "paper", target_name: str = "cuda"
) -> dict[str, Any]:
    """Write a case's files: the program, the weights, and what ``run`` wants to know."""
    from safetensors.torch import save_file

    from ttsnn.driver import build
    from ttsnn.passes.traffic import traffic
    from ttsnn.passes.training import SGD, CrossEntropy
    from ttsnn.runtime.step_file import save_step
    from ttsnn.runtime.training.step import TrainStep
    from ttsnn.targets import get_target

    model, program, plan = imported(case, rule)
    target = get_target(f"{target_name}:arch={archs},precision={case.precision}")
    file = folder / f"{case.name}.ttsnn"
    start = time.perf_counter()
    if case.phase == "inference":
        build(program, target, name=case.name).save(file)
    else:
        step = TrainStep(program, CrossEntropy(), SGD(momentum=MOMENTUM), target=target)
        save_step(step, file, model=case.name)
    seconds = time.perf_counter() - start
    kernels = traffic(lowered_of(case, program, target))
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / f"{case.name}.safetensors")
    return asdict(case) | {
        "plan": None if plan is None else plan.to_json(),
        "macs": sum(k.macs for k in kernels),
        "bytes": sum(k.bytes for k in kernels),
        "launches": sum(k.calls for k in kernels),
        "compile_s": seconds,
    }


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

        optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM)

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
        if name == "spikingjelly":
            return eager(model, with_spikingjelly(model))
        return eager(model, torch.compile(model) if name == "inductor" else model)

    made: dict[str, Callable[[], Callable[[], Any]]] = {
        "ttsnn": lambda: ours(case, folder, x, labels),
        **{name: partial(peer, name) for name in PEERS},
    }
    return {name: make for name, make in made.items() if name in wanted}


def with_spikingjelly(model: torch.nn.Module) -> Callable[[torch.Tensor], Any]:
    """Put SpikingJelly's neurons, over all timesteps, in place of ours; what calls the network.

    They fire at the threshold too, where ours fire above it, and have the arctan surrogate: for
    our rectangle SpikingJelly has no Triton kernel. So gradients differ; what is measured is time.
    """
    from spikingjelly.activation_based import functional, neuron, surrogate

    from ttsnn.models import LIF

    def node(lif: LIF) -> torch.nn.Module:
        a = lif.attrs
        if (a.form, a.reset, a.reset_timing) != ("multiply", "hard", "after_fire"):
            raise ValueError(f"no SpikingJelly neuron for {lif}")
        settings: dict[str, Any] = {"v_threshold": a.v_threshold, "v_reset": a.v_reset}
        settings |= {"tau": 1 / (1 - a.decay), "decay_input": False, "step_mode": "m"}
        settings["surrogate_function"] = surrogate.ATan()
        return neuron.LIFNode(detach_reset=a.detach_reset, **settings)

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LIF):
                setattr(parent, name, node(child))

    def call(x: torch.Tensor) -> Any:
        functional.reset_net(model)
        return model(x)

    return call


def ours(case: Case, folder: Path, x: Any, labels: Any) -> Callable[[], Any]:
    """The compiled program."""
    from ttsnn.runtime.net import load
    from ttsnn.runtime.step_file import load_step

    file = folder / f"{case.name}.ttsnn"
    if case.phase == "inference":
        net = load(file)
        return lambda: net(x)
    step = load_step(file)
    return lambda: step(x, labels, LR)[0]


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
    row: dict[str, Any] = asdict(case) | {k: about[k] for k in ("compile_s", "launches")}
    row["results"] = found
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
    from ttsnn.targets import get_target

    sizes = (args.batch, args.timesteps, args.precision, args.dataset)
    case = Case(args.phase, args.network, args.mode, *sizes)
    _, program, _ = imported(case, args.plan)
    target = get_target(f"cuda:arch=sm_90,precision={case.precision}")
    lowered = lowered_of(case, program, target)
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


def plot(args: argparse.Namespace) -> int:
    """Draw how many times faster than each peer every case ran, a panel for each phase."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    report = json.loads(args.results.read_text())
    rows = [r for r in report["rows"] if len(r["results"]) > 1 and "ttsnn" in r["results"]]
    if not rows:
        print(f"benchmarks/gpu.py plot: {args.results} has no case of ttsnn beside a peer")
        return 2
    phases = list(dict.fromkeys(r["phase"] for r in rows))
    most = max(sum(r["phase"] == p for r in rows) for p in phases)
    size = (max(7.0, 0.8 * most + 2), 4.5 * len(phases))
    figure, panels = plt.subplots(len(phases), 1, figsize=size, squeeze=False)
    for axes, phase in zip(panels[:, 0], phases, strict=True):
        chosen = [r for r in rows if r["phase"] == phase]
        for i, peer in enumerate(PEERS):
            times = [(k, r["results"]) for k, r in enumerate(chosen) if peer in r["results"]]
            places = [k + (i + 0.5) / (len(PEERS) + 1) for k, _ in times]
            ratios = [t[peer]["ms"] / t["ttsnn"]["ms"] for _, t in times]
            axes.bar(places, ratios, 1 / (len(PEERS) + 1), label=peer)
        axes.axhline(1, color="black", linewidth=0.8)
        names = ["\n".join(str(r[k]) for k in LABEL) for r in chosen]
        axes.set_xticks([k + 0.5 for k in range(len(chosen))], names, fontsize=7)
        axes.set_yscale("log", base=2)
        title = f"{phase}, {report['device']}; network, mode, batch, T, precision"
        axes.set(title=title, ylabel="time of the peer / time of ttsnn")
        axes.legend()
    figure.tight_layout()
    figure.savefig(args.out or args.results.with_suffix(".png"), dpi=110)
    return 0


def main() -> int:
    """All parts."""
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
    fourth = parts.add_parser("plot", help="draw what run measured; needs matplotlib")
    fourth.add_argument("results", type=Path)
    fourth.add_argument("--out", type=Path, help="(default: beside the results, .png)")
    args = parser.parse_args()
    chosen = {"compile": compile_all, "run": run, "roofline": roofline, "plot": plot}
    return chosen[args.part](args)


if __name__ == "__main__":
    raise SystemExit(main())
