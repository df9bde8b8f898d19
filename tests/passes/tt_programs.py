"""Small programs with dense layers, as the frontend imports them, and how to run them."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax

from ttsnn.ops import lif, tt_conv2d, tt_linear
from ttsnn.program import make_program, params_of

__all__ = ["conv_layer", "every_kind", "linear_layer", "program", "run"]


def program(
    shape: tuple,
    params: dict[str, np.ndarray],
    body: Callable[[relax.BlockBuilder, relax.Var, dict[str, relax.Var]], relax.Expr],
    *,
    T: int | None = None,
    dtype: str = "float64",
) -> tvm.IRModule:
    """``main(x, params…)`` with x of ``shape`` ("n" is symbolic) and the given body."""
    n = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType([n if s == "n" else s for s in shape], dtype))
    variables = {
        name: relax.Var(name.replace(".", "_"), relax.TensorType(v.shape, str(v.dtype)))
        for name, v in params.items()
    }
    bb = relax.BlockBuilder()
    with bb.function("main", [x, *variables.values()], attrs={"num_input": 1}):
        with bb.dataflow():
            out = bb.emit_output(body(bb, x, variables))
        bb.emit_func_output(out)
    mod = make_program(bb.finalize()["main"], params)
    return mod if T is None else mod.with_attr("ttsnn.meta", json.dumps({"T": T}))


def conv_layer(bb, x, weights, name, **geometry):
    """conv2d with the weight and, where there is one, the bias called ``name``."""
    y = bb.emit(relax.op.nn.conv2d(x, weights[f"{name}.weight"], **geometry))
    if f"{name}.bias" in weights:
        bias = relax.op.reshape(weights[f"{name}.bias"], [1, -1, 1, 1])
        y = bb.emit(relax.op.add(y, bb.emit(bias)))
    return y


def linear_layer(bb, x, weights, name):
    """matmul with the transposed weight, and the bias."""
    w = bb.emit(relax.op.permute_dims(weights[f"{name}.weight"]))
    y = bb.emit(relax.op.matmul(x, w))
    if f"{name}.bias" in weights:
        y = bb.emit(relax.op.add(y, weights[f"{name}.bias"]))
    return y


def every_kind(batch) -> tvm.IRModule:
    """TT convolution and neuron, pooling, a TT linear layer by its cores, softmax."""
    rng = np.random.default_rng(4)
    shapes = {
        "conv.g1": (3, 2),
        "conv.g2": (3, 3, 3),
        "conv.g3": (3, 3, 3),
        "conv.g4": (6, 3),
        "fc.cores.0": (1, 3, 2, 2),
        "fc.cores.1": (2, 5, 3, 1),
    }
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def body(bb, x, w):
        y = bb.emit(tt_conv2d(x, *list(w.values())[:4], mode="ptt", padding=1))
        sizes = list(y.ty.shape.values)
        v0 = bb.emit(relax.op.zeros(sizes[1:], "float64"))
        s = bb.emit(relax.TupleGetItem(bb.emit(lif(y, v0, decay=0.25, v_threshold=0.3)), 0))
        y = bb.emit(relax.op.mean(s, [3, 4]))
        y = bb.emit(tt_linear(y, *list(w.values())[4:]))
        return bb.emit(relax.op.nn.softmax(y))

    return program((2, batch, 2, 5, 4), params, body)


def run(mod: tvm.IRModule, x: np.ndarray) -> np.ndarray:
    """Compile the program without schedules and run it."""
    assert relax.analysis.check_well_formed(mod)
    params = params_of(mod)
    plain = mod.without_attr("ttsnn.params")
    executable = tvm.compile(plain, target="llvm")
    vm = relax.VirtualMachine(executable, tvm.cpu())
    args = [tvm.runtime.tensor(np.ascontiguousarray(a)) for a in [x, *params.values()]]
    return vm["main"](*args).numpy()
