"""Modules of layers on the emulated GPU."""

from __future__ import annotations

import json

import numpy as np
import tvm
from tvm import relax

from ttsnn.cuda import emulator
from ttsnn.passes.cuda.gpu import gpu_of
from ttsnn.passes.cuda.kernels.conv import conv_kernel
from ttsnn.passes.cuda.kernels.conv_spec import result_shapes
from ttsnn.passes.cuda.kernels.conv_tile import default_tile
from ttsnn.passes.layers import layer_call
from ttsnn.program import make_program, params_of
from ttsnn.targets import get_target


def emulated(options=None):
    """The emulated target, every tensor with memory of its own."""
    return get_target("cuda-emulated", memory="exact", **(options or {}))


def run(target, lowered, inputs):
    """Results of ``main``, as arrays."""
    emulator.enable(order="both")  # each launch, through a block's threads forwards and backwards
    executable = target.build(lowered)
    device = tvm.cuda(0)
    # "naive": every buffer has its own memory, so that accesses outside of it are noticed
    machine = relax.VirtualMachine(executable, device, memory_cfg="naive")
    values = [*inputs, *params_of(lowered).values()]
    out = machine["main"](*[tvm.runtime.tensor(np.ascontiguousarray(v), device) for v in values])
    emulator.check()
    return [o.numpy() for o in (out if not hasattr(out, "numpy") else [out])]


def layers_program(cases, symbolic=False):
    """A program that computes several layers, each of (config, operands by name).

    Returns it and its inputs, in order.
    """
    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    inputs, params, weights = [], [], {}
    for i, (config, operands) in enumerate(cases):
        for name, value in operands.items():
            shape = list(value.shape)
            own = f"l{i}.{name}"
            if name in ("x", "residual", "v0"):
                if symbolic:
                    shape[0 if name == "v0" else 1] = n
                inputs.append((i, name, relax.Var(own.replace(".", "_"), _type(shape, config))))
            else:
                params.append((i, name, relax.Var(own.replace(".", "_"), _type(shape, config))))
                weights[own] = value
    known = {(i, name): var for i, name, var in inputs + params}
    with builder.function("main", [v for *_, v in inputs + params], {"num_input": len(inputs)}):
        with builder.dataflow():
            outs = []
            for i, (config, operands) in enumerate(cases):
                out = builder.emit(layer_call(config, [known[i, name] for name in operands]))
                count = len(config.emit)
                outs += (
                    [out]
                    if count == 1
                    else [builder.emit(relax.TupleGetItem(out, k)) for k in range(count)]
                )
            gv = builder.emit_output(relax.Tuple(outs))
        builder.emit_func_output(gv)
    mod = make_program(builder.get()["main"], weights).with_attr("ttsnn.meta", json.dumps({}))
    return mod, [cases[i][1][name] for i, name, _ in inputs]


def _type(shape, config):
    return relax.TensorType(shape, config.dtype)


def run_layers(cases, symbolic=False, target=None):
    """Results by name of each of (config, operands by name)."""
    target = target or emulated()
    mod, inputs = layers_program(cases, symbolic)
    found = iter(run(target, target.lower(mod), inputs))
    return [{name: next(found) for name in config.emit} for config, _ in cases]


def run_conv(spec, x, w, tile=None):
    """Result of one convolution of x [T, N, H, W, Cin] and w [taps, Cin, Cout]."""
    target = emulated()
    gpu = gpu_of(target.tvm_target)
    tile = tile or default_tile(spec, x.shape[1], gpu)
    builder = relax.BlockBuilder()
    gvar = builder.add_func(conv_kernel(spec, x.shape[1], tile, gpu), "conv")
    types = [relax.TensorType(v.shape, str(v.dtype)) for v in (x, w)]
    args = [relax.Var(name, ty) for name, ty in zip("xw", types, strict=True)]
    ((shape, dtype),) = result_shapes(spec, x.shape[1])
    with builder.function("main", args, {"num_input": 2}):
        with builder.dataflow():
            call = relax.call_tir(gvar, args, relax.TensorType(shape, dtype))
            out = builder.emit_output(builder.emit(call))
        builder.emit_func_output(out)
    (found,) = run(target, builder.get(), [x, w])
    return found
