"""What a layer computes, in NumPy, and helpers to build and run one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import tvm
from tvm import relax

from ttsnn.passes.cpu.rules.layer import layer_rule
from ttsnn.passes.layers import layer_call
from ttsnn.passes.layers.config import LayerConfig, LifConfig, Stage
from ttsnn.passes.layers.reference import reference_layer
from ttsnn.passes.layers.signature import result_shapes

LIF = LifConfig(0.25, 1.0, 2.0, 0.5, 0.0, "hard", ">", "after_fire", "multiply")
POINT = ((0, 0),)
CROSS = ((-1, 0), (0, -1), (0, 0), (0, 1), (1, 0))
COLUMN = ((-1, 0), (0, 0), (1, 0))
ROW = ((0, -1), (0, 0), (0, 1))
SQUARE = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1))


def chain(size, channels, taps, strides=None):
    """Stages through ``channels`` with the given taps; each stride rounds sizes up."""
    out = []
    for i, tap in enumerate(taps):
        stride = (strides or {}).get(i, (1, 1))
        to = tuple(-(-s // d) for s, d in zip(size, stride))
        out.append(Stage(tap, size, to, channels[i], channels[i + 1], stride))
        size = to
    return tuple(out)


def layer(stages, T=3, half=(), lif=LIF, dtype="float64", **kw):
    """A config with common defaults."""
    base = LayerConfig(
        name="block.conv1",
        T=T,
        x_T=T,
        stages=stages,
        half_stages=half,
        timesteps=T,
        bias=True,
        residual=False,
        residual_T=T,
        lif=lif,
        v0=False,
        emit=("spikes",) if lif else ("membrane",),
        dtype=dtype,
    )
    return replace(base, **kw)


def random_operands(config, batch, seed=0):
    """Plain operands by name, in order."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(config.dtype)

    first, last = config.stages[0], config.stages[-1]
    image = (*last.out_size, last.out_channels)
    out = {"x": draw(config.x_T, batch, *first.in_size, first.in_channels)}
    if config.byte_x:
        out["x"] = (out["x"] > 1).astype(np.uint8)
    for prefix, stages in (("w", config.stages), ("half_w", config.half_stages)):
        for i, s in enumerate(stages):
            w = draw(len(s.taps), s.in_channels, s.out_channels)
            out[f"{prefix}{i}"] = w / np.sqrt(w.shape[0] * w.shape[1]).astype(w.dtype)
    if config.bias:
        out["bias"] = draw(last.out_channels)
    if config.residual:
        out["residual"] = draw(config.residual_T, batch, *image)
    if config.v0:
        out["v0"] = draw(batch, *image)
    return out


def convolve(x, w, stage):
    """One stage on [N, H, W, C], by shifted copies of a padded image."""
    pad = max(max(abs(i), abs(j)) for i, j in stage.taps) + 8
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    (sh, sw), (ho, wo) = stage.strides, stage.out_size
    y = 0
    for (i, j), tap in zip(stage.taps, w):
        rows, cols = pad + i + sh * np.arange(ho), pad + j + sw * np.arange(wo)
        y = y + padded[:, rows][:, :, cols] @ tap
    return y


def lif_numpy(cfg, x, v):
    """The neuron's loop over T: spikes [T, …] and the last membrane."""

    def fires(h):
        return h > cfg.v_threshold if cfg.fire == ">" else h >= cfg.v_threshold

    def reset(h, s):
        if cfg.reset == "hard":
            return np.where(s, cfg.v_reset, h)
        return h - s * cfg.v_threshold if cfg.reset == "soft" else h

    spikes = []
    rest = 0.0 if cfg.reset == "soft" else cfg.v_reset
    for xt in x:
        r = fires(v)
        if cfg.reset_timing == "before_decay":
            v = reset(v, r)
        if cfg.form == "multiply":
            h = cfg.decay * v + cfg.gain * xt
        elif cfg.form == "euler":
            h = v + (xt - (v - rest)) / cfg.tau
        else:
            h = v - (v - rest) / cfg.tau + xt
        if cfg.reset_timing == "after_decay":
            h = reset(h, r)
        s = fires(h)
        spikes.append(s)
        v = reset(h, s) if cfg.reset_timing == "after_fire" else h
    return np.stack(spikes).astype(x.dtype), v.astype(x.dtype)


def expected(config, operands):
    """Results by name."""
    x = operands["x"].astype(config.dtype)
    steps = []
    for t in range(config.T):
        y = x[t if config.x_T > 1 else 0]
        half = t >= config.timesteps
        for i, stage in enumerate(config.half_stages if half else config.stages):
            y = convolve(y, operands[f"{'half_w' if half else 'w'}{i}"], stage)
        if config.bias:
            y = y + operands["bias"]
        if config.residual:
            y = y + operands["residual"][t if config.residual_T > 1 else 0]
        steps.append(y)
    out = {"membrane": np.stack(steps)}
    if config.lif:
        v0 = operands.get("v0", np.zeros_like(steps[0]))
        out["spikes"], out["v_last"] = lif_numpy(config.lif, out["membrane"], v0)
    return {name: out[name].astype(config.dtype_of(name)) for name in config.emit}


def layer_module(config, operands, symbolic=False):
    """A module whose ``main`` calls one layer."""
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64") if symbolic else operands["x"].shape[1]
    params = []
    for name, value in operands.items():
        shape = list(value.shape)
        if name in ("x", "residual"):
            shape[1] = n
        elif name == "v0":
            shape[0] = n
        params.append(relax.Var(name, relax.TensorType(shape, config.dtype_of(name))))
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit(layer_call(config, params))
            gv = builder.emit_output(out)
        builder.emit_func_output(gv)
    return builder.get()


def run(mod, config, operands, target):
    """Compile ``mod`` for ``target``, run it, and return results by name."""
    with tvm.target.Target(target):
        exe = tvm.compile(mod, target=target)
    vm = relax.VirtualMachine(exe, tvm.cpu())
    out = vm["main"](*[tvm.runtime.tensor(v) for v in operands.values()])
    out = [out] if len(config.emit) == 1 else list(out)
    return {name: value.numpy() for name, value in zip(config.emit, out)}


def fused(config, operands, batch, target, tiles=None):
    """Run the rule's kernel directly; results by name."""
    func = reference_layer(config, batch, "layer")
    func = layer_rule(func, target, tiles).mod["main"].with_attr("global_symbol", "layer")
    lib = tvm.compile(tvm.IRModule({"layer": func}), target=target)
    n = operands["x"].shape[1]
    outs = [
        tvm.runtime.tensor(np.full(shape, 77).astype(config.dtype_of(name)))
        for name, shape in result_shapes(config, n)
    ]
    lib["layer"](*[tvm.runtime.tensor(v) for v in operands.values()], *outs)
    return {name: out.numpy() for name, out in zip(config.emit, outs)}


def assert_same(got, want, dtype):
    """Equal spikes, and floats equal up to rounding; near the threshold a spike may flip."""
    tol = 1e-12 if dtype == "float64" else 2e-4
    for name, value in want.items():
        assert got[name].shape == value.shape
        assert got[name].dtype == value.dtype
        if name == "spikes" and dtype == "float32":
            assert (got[name] != value).mean() < 2e-3
        elif name == "v_last" and dtype == "float32":
            assert (np.abs(got[name] - value) > tol).mean() < 2e-3
        else:
            np.testing.assert_allclose(got[name], value, rtol=tol, atol=tol)
