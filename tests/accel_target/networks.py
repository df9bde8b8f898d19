"""Small spiking networks as programs, and their results by TVM's reference kernels."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import tvm
from tvm import relax

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.sim.execute import execute
from ttsnn.ops import lif, tt_conv2d
from ttsnn.passes.training import SGD, CrossEntropy, build_train_step
from ttsnn.program import make_program, num_inputs, params_of

__all__ = [
    "check",
    "convolution",
    "network",
    "reference",
    "results",
    "small",
    "train_step",
    "values_of",
]


class _Net:
    """Emits layers; parameters get random values when they are first used."""

    def __init__(self, T: int, N: int, seed: int, dtype: str) -> None:
        self.T, self.N, self.dtype = T, N, dtype
        self.rng = np.random.default_rng(seed)
        self.params: dict[str, np.ndarray] = {}
        self.variables: dict[str, relax.Var] = {}
        self.bb = relax.BlockBuilder()

    def param(self, name: str, *shape: int, scale: float = 1.0, at: float = 0.0) -> relax.Var:
        value = (self.rng.normal(size=shape) * scale + at).astype(self.dtype)
        if name.endswith("running_var"):
            value = np.abs(value) + 0.5
        self.params[name] = value
        self.variables[name] = relax.Var(
            name.replace(".", "_"), relax.TensorType(shape, self.dtype)
        )
        return self.variables[name]

    def emit(self, expr: relax.Expr) -> relax.Var:
        return self.bb.emit(expr)

    def conv(self, x, name, cout, kernel, stride=1, padding=0):
        cin = int(x.ty.shape.values[1])
        w = self.param(f"{name}.weight", cout, cin, kernel, kernel, scale=1 / kernel)
        pads = [padding] * 4
        return self.emit(relax.op.nn.conv2d(x, w, strides=[stride] * 2, padding=pads))

    def tt(self, x, name, cout, rank, mode, stride=1, timesteps=None, kernel=3):
        cin = int(x.ty.shape.values[1])
        cores = [
            self.param(f"{name}.g1", rank, cin),
            self.param(f"{name}.g2", rank, rank, kernel, scale=0.6),
            self.param(f"{name}.g3", rank, rank, kernel, scale=0.6),
            self.param(f"{name}.g4", cout, rank, scale=0.6),
        ]
        if mode == "htt":
            x = self.emit(relax.op.reshape(x, [self.T, self.N, *map(int, x.ty.shape.values[1:])]))
            y = tt_conv2d(x, *cores, mode=mode, timesteps=timesteps, strides=stride, padding=1)
            y = self.emit(y)
            return self.emit(
                relax.op.reshape(y, [self.T * self.N, *map(int, y.ty.shape.values[2:])])
            )
        pad = (kernel // 2,) * 4
        return self.emit(tt_conv2d(x, *cores, mode=mode, strides=stride, padding=pad))

    def norm(self, x, name):
        c = int(x.ty.shape.values[1])
        stats = [
            self.param(f"{name}.weight", c, scale=0.1, at=0.7),
            self.param(f"{name}.bias", c, scale=0.1, at=0.3),
            self.param(f"{name}.running_mean", c, scale=0.1),
            self.param(f"{name}.running_var", c),
        ]
        y = self.emit(relax.op.nn.batch_norm(x, *stats, axis=1, momentum=0.1, training=False))
        return self.emit(relax.TupleGetItem(y, 0))

    def neuron(self, x):
        shape = [int(s) for s in x.ty.shape.values]
        x = self.emit(relax.op.reshape(x, [self.T, self.N, *shape[1:]]))
        v0 = self.emit(relax.op.zeros([self.N, *shape[1:]], self.dtype))
        s = self.emit(relax.TupleGetItem(self.emit(lif(x, v0)), 0))
        return self.emit(relax.op.reshape(s, shape))


def network(
    mode: str = "ptt",
    *,
    T: int = 2,
    N: int = 1,
    size: tuple[int, int] = (7, 6),
    channels: tuple[int, int] = (10, 14),
    rank: int = 5,
    classes: int = 4,
    stride: int = 2,
    seed: int = 0,
    dtype: str = "float64",
) -> tvm.IRModule:
    """Stem, a residual block of tensor trains with a strided shortcut, neuron, mean, classifier.

    ``mode``: ``stt``, ``ptt``, ``htt`` or ``dense``. Input [T·N, 3, H, W], static batch.
    """
    net = _Net(T, N, seed, dtype)
    x = relax.Var("x", relax.TensorType([T, N, 3, *size], dtype))
    c1, c2 = channels

    def core(value, name, cout, s):
        if mode == "dense":
            return net.conv(value, name, cout, 3, s, 1)
        return net.tt(value, name, cout, rank, mode, s, timesteps=(T + 1) // 2)

    with net.bb.function("main"):
        with net.bb.dataflow():
            y = net.emit(relax.op.reshape(x, [T * N, 3, *size]))
            y = net.norm(net.conv(y, "stem", c1, 3, 1, 1), "bn0")
            z = net.norm(core(net.neuron(y), "conv1", c1, 1), "bn1")
            z = net.norm(core(net.neuron(z), "conv2", c2, stride), "bn2")
            short = net.norm(net.conv(y, "short", c2, 1, stride), "bn3")
            z = net.neuron(net.emit(relax.op.add(z, short)))
            shape = [int(s) for s in z.ty.shape.values]
            z = net.emit(relax.op.reshape(z, [T, N, *shape[1:]]))
            z = net.emit(relax.op.mean(net.emit(relax.op.mean(z, [3, 4])), [0]))
            w = net.emit(relax.op.permute_dims(net.param("fc.weight", classes, c2)))
            z = net.emit(relax.op.matmul(z, w))
            out = net.bb.emit_output(relax.op.add(z, net.param("fc.bias", classes)))
        net.bb.emit_func_output(out, [x, *net.variables.values()])
    func = net.bb.finalize()["main"].with_attr("num_input", 1)
    mod = make_program(func, net.params)
    meta = {
        "T": T,
        "inputs": [],
        "outputs": [],
        "state": [],
        "buffers": [n for n in net.params if "running" in n],
    }
    return mod.with_attr("ttsnn.meta", json.dumps(meta))


def convolution(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    *,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    spiking: bool = False,
) -> tvm.IRModule:
    """One convolution of ``x`` [T, N, C, H, W] with ``w``, behind a neuron or not."""
    x = relax.Var("x", relax.TensorType(shape, "float64"))
    w = relax.Var("w", relax.TensorType(weight, "float64"))
    t, n, *rest = shape
    pads = [padding] * 4 if isinstance(padding, int) else [*padding, *padding]
    bb = relax.BlockBuilder()
    with bb.function("main", [x, w]):
        with bb.dataflow():
            y: relax.Expr = x
            if spiking:
                v0 = bb.emit(relax.op.zeros([n, *rest], "float64"))
                y = bb.emit(relax.TupleGetItem(bb.emit(lif(x, v0)), 0))
            y = bb.emit(relax.op.reshape(y, [t * n, *rest]))
            y = relax.op.nn.conv2d(y, w, strides=[stride] * 2, padding=pads)
            out = bb.emit_output(y)
        bb.emit_func_output(out)
    func = bb.finalize()["main"].with_attr("num_input", 1)
    mod = make_program(func, {"w": np.ones(weight)})
    meta = {"T": t, "inputs": [], "outputs": [], "state": [], "buffers": []}
    return mod.with_attr("ttsnn.meta", json.dumps(meta))


def train_step(mod: tvm.IRModule, **options) -> tvm.IRModule:
    """One training step of a network."""
    return build_train_step(mod, CrossEntropy(), SGD(**({"momentum": 0.9} | options)))


def values_of(mod: tvm.IRModule, seed: int = 1, rate: float | None = None) -> dict:
    """Random inputs, and the parameters, by name, in the order of ``main``'s arguments."""
    rng, params = np.random.default_rng(seed), params_of(mod)
    main, out = mod["main"], {}
    names = list(params)
    for i, arg in enumerate(main.params):
        shape = [int(s) for s in arg.ty.shape.values]
        if arg.name == "labels":
            out["labels"] = rng.integers(0, 3, shape)
        elif arg.name == "lr":
            out["lr"] = np.float64(0.1)
        elif i < num_inputs(main):
            out[arg.name] = rng.normal(size=shape).astype(str(arg.ty.dtype))
        else:
            name = names[i - num_inputs(main)]
            value = params[name]
            if name.endswith("momentum_buffer"):
                value = rng.normal(size=value.shape).astype(value.dtype) * 0.01
            out[name] = value
    return out


def reference(mod: tvm.IRModule, values: dict) -> list[np.ndarray]:
    """Results by TVM, without schedules."""
    vm = relax.VirtualMachine(relax.build(mod.without_attr("ttsnn.params"), "llvm"), tvm.cpu())
    out = vm["main"](*[tvm.runtime.tensor(np.asarray(v, order="C")) for v in values.values()])
    return [o.numpy() for o in out] if not hasattr(out, "numpy") else [out.numpy()]


def results(program: Program, arch: Architecture, values: dict) -> list[np.ndarray]:
    """Results by the accelerator in float64, in the order of ``main``'s."""
    outputs, _ = execute(program, arch, values, dtype="float64")
    return [v for _, v in sorted(outputs.items(), key=lambda kv: int(kv[0].partition(":")[0]))]


def check(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    """As many results, each within 1e-11 of its largest element."""
    for g, w in zip(got, want, strict=True):
        assert np.abs(g - w).max() <= 1e-11 * max(np.abs(w).max(), 1e-12)


def small(arch: Architecture, share: int) -> Architecture:
    """The same machine with a fraction of its buffers."""
    clusters = tuple(
        dataclasses.replace(
            c,
            weight_buffer=c.weight_buffer // share,
            input_buffer=c.input_buffer // share,
            output_buffer=c.output_buffer // share,
        )
        for c in arch.clusters
    )
    return dataclasses.replace(arch, clusters=clusters)
