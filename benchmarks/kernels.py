"""Fused layer kernels of the CPU target, layer by layer, against PyTorch.

    python benchmarks/kernels.py --batch 1 --threads 1

The layers are the sixteen decomposed convolutions of MS-ResNet18 on 32×32 images with the
paper's ranks (PTT, cores strided), each with batch norm, residual where the network has one, and
its neuron. PyTorch runs the same layer in eager mode with time folded into the batch and memory
channels last: four convolutions, batch norm, add, and a loop over T for the neuron. Calls are
interleaved; printed are the least and the median time, and the median ratio of the pairs.
GFLOP/s count two operations for a multiply-add of the chain with its merged 5-tap cross core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import tvm
from torch import nn

from ttsnn.passes.cpu.kernels.pack import pack_layer_weights
from ttsnn.passes.cpu.rules.layer import layer_rule
from ttsnn.passes.layers.config import LayerConfig, LifConfig, Stage
from ttsnn.passes.layers.reference import reference_layer
from ttsnn.passes.layers.signature import operand_shapes, result_shapes
from ttsnn.plans.paper import paper_networks
from ttsnn.runtime.measure import Pairs, time_pairs
from ttsnn.runtime.threads import apply_threads, prepare, threads

T = 4
CROSS = ((-1, 0), (0, -1), (0, 0), (0, 1), (1, 0))
POINT = ((0, 0),)
NEURON = LifConfig(0.25, 1.0, 2.0, 0.5, 0.0, "hard", ">", "after_fire", "multiply")


def layers(dtype: str) -> Iterator[LayerConfig]:
    """The decomposed layers in network order."""
    channels, size, index = 64, 32, 0
    ranks = next(n["ranks"] for n in paper_networks() if n["name"] == "ms_resnet18")
    for width in (64, 128, 256, 512):
        for block in range(2):
            for second in (False, True):
                stride = 2 if width != channels else 1
                out, r = size // stride, ranks[index]
                sizes = ((size, size), (out, out))
                stages = (
                    Stage(POINT, sizes[0], sizes[0], channels, r),
                    Stage(CROSS, sizes[0], sizes[1], r, r, (stride, stride)),
                    Stage(POINT, sizes[1], sizes[1], r, width),
                )
                name = f"layer{(64, 128, 256, 512).index(width) + 1}.{block}.conv{1 + second}"
                yield LayerConfig(
                    name=name,
                    T=T,
                    x_T=T,
                    stages=stages,
                    half_stages=(),
                    timesteps=T,
                    bias=True,
                    residual=second,
                    residual_T=T,
                    lif=NEURON,
                    v0=False,
                    emit=("membrane", "spikes") if second else ("spikes",),
                    dtype=dtype,
                )
                channels, size, index = width, out, index + 1


def macs(config: LayerConfig) -> int:
    """Multiply-adds of one image and all timesteps."""
    return config.T * sum(
        len(s.taps) * s.in_channels * s.out_channels * s.out_size[0] * s.out_size[1]
        for s in config.stages
    )


def compiled(
    config: LayerConfig, batch: int, target: tvm.target.Target
) -> tuple[Callable[[], object], float]:
    """A call of our kernel on random data, and the seconds that it took to compile."""
    rng = np.random.default_rng(0)
    shapes = dict(operand_shapes(config, batch))
    weights = [rng.standard_normal(shapes[f"w{i}"]) * 0.1 for i in range(len(config.stages))]
    weights = [w.astype(config.dtype) for w in weights]
    packed, weights = pack_layer_weights(config, weights, target)
    data = {n: rng.standard_normal(s).astype(config.dtype) for n, s in shapes.items()}
    data["x"] = (data["x"] > 1).astype(config.dtype)
    data |= {f"w{i}": w for i, w in enumerate(weights)}
    start = time.perf_counter()
    func = layer_rule(reference_layer(packed, batch, "layer"), target).mod["main"]
    lib = tvm.compile(tvm.IRModule({"layer": func.with_attr("global_symbol", "layer")}), target)
    seconds = time.perf_counter() - start
    outs = [tvm.runtime.empty(s, config.dtype) for _, s in result_shapes(config, batch)]
    args = [tvm.runtime.tensor(v) for v in data.values()] + outs
    call = lib.jit()["layer"] if hasattr(lib, "jit") else lib["layer"]
    return lambda: call(*args), seconds


class Eager(nn.Module):
    """The same layer as PyTorch users write it, time folded into the batch."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        first, cross, last = config.stages
        r, s = cross.in_channels, cross.strides[0]
        self.g1 = nn.Conv2d(first.in_channels, r, 1, bias=False)
        self.g2 = nn.Conv2d(r, r, (3, 1), (s, s), (1, 0), bias=False)
        self.g3 = nn.Conv2d(r, r, (1, 3), (s, s), (0, 1), bias=False)
        self.g4 = nn.Conv2d(r, last.out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(last.out_channels)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        h = self.g1(x)
        y = self.bn(self.g4(0.5 * (self.g2(h) + self.g3(h))))
        if residual is not None:
            y = y + residual
        steps = y.view(T, -1, *y.shape[1:])
        v, out = torch.zeros_like(steps[0]), torch.empty_like(steps)
        for t in range(T):
            v = NEURON.decay * v + steps[t]
            out[t] = v > NEURON.v_threshold
            v = v * (1.0 - out[t])
        return out


def eager(config: LayerConfig, batch: int) -> Callable[[], object]:
    """A call of the PyTorch layer on random data."""
    dtype = getattr(torch, config.dtype)
    net = Eager(config).eval().to(dtype).to(memory_format=torch.channels_last)
    first, last = config.stages[0], config.stages[-1]
    x = (torch.rand(T * batch, first.in_channels, *first.in_size) < 0.15).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    residual = None
    if config.residual:
        residual = torch.randn(T * batch, last.out_channels, *last.out_size, dtype=dtype)
        residual = residual.to(memory_format=torch.channels_last)

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return net(x, residual)

    return call


def _times(pairs: Pairs) -> dict[str, float]:
    ours, peer = pairs.ours_ms, pairs.peer_ms
    return {
        "ms_min": min(ours),
        "ms_median": statistics.median(ours),
        "torch_ms_min": min(peer),
        "torch_ms_median": statistics.median(peer),
        "ratio": pairs.ratio,
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=15, help="interleaved pairs of blocks")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--mcpu", help="default: this machine's")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    prepare()
    mcpu = args.mcpu or tvm.target.codegen.llvm_get_system_cpu()
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu, "num-cores": args.threads})
    torch.set_num_threads(args.threads)
    rows = []
    with threads(args.threads):
        # kernels are called here without a network, which would do this
        apply_threads(args.threads)
        for config in layers(args.dtype):
            ours, seconds = compiled(config, args.batch, target)
            row = {"layer": config.name, "rank": config.stages[0].out_channels}
            pairs = time_pairs(ours, eager(config, args.batch), repeats=args.pairs)
            row |= _times(pairs)
            row["gflops"] = 2e-6 * macs(config) * args.batch / row["ms_min"]
            row["compile_s"] = seconds
            rows.append(row)
            if not args.json:
                print(
                    f"{row['layer']:14s} rank {row['rank']:3d}  "
                    f"{row['ms_min']:7.3f} / {row['ms_median']:7.3f} ms  "
                    f"torch {row['torch_ms_min']:8.3f} / {row['torch_ms_median']:8.3f} ms  "
                    f"ratio {row['ratio']:5.2f}  {row['gflops']:6.1f} GFLOP/s  "
                    f"compile {seconds:.2f} s",
                    flush=True,
                )
    total = {k: sum(r[k] for r in rows) for k in ("ms_min", "ms_median", "torch_ms_min")}
    work = sum(2e-6 * macs(c) * args.batch for c in layers(args.dtype))
    total["ratio"] = total["torch_ms_min"] / total["ms_min"]
    total["gflops"] = work / total["ms_min"]
    if args.json:
        print(json.dumps({"options": vars(args), "layers": rows, "total": total}, indent=1))
    else:
        print(
            f"all layers: {total['ms_min']:.2f} ms, torch {total['torch_ms_min']:.2f} ms (least "
            f"times), ratio {total['ratio']:.2f}, {total['gflops']:.1f} GFLOP/s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
