"""Weights from parameters and gradients back, on the emulated GPU against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from ttsnn.passes.cuda.gpu import gpu_of
from ttsnn.passes.cuda.kernels.weight_map import core_grads, tap_weight
from ttsnn.passes.training_kernels.weight_map import WeightMap

from .emulated import emulated, run

# the middle of a cross is made of both of its branches
CROSS = WeightMap(
    ((21, 6, 3, 1), (21, 6, 1, 3)),
    (((0, 0),), ((1, 0),), ((0, 1), (1, 1)), ((1, 2),), ((0, 2),)),
    0.5,
)
SQUARE = WeightMap(((12, 5, 3, 3),), tuple(((0, k),) for k in range(9)))
POINT = WeightMap(((3, 1),), (((0, 0),),))


def dense(map_, sources):
    """[taps, Cin, Cout] as WeightMap says."""
    flat = [s.reshape(*s.shape[:2], -1) for s in sources]
    taps = [sum(flat[i][:, :, j].T for i, j in tap) for tap in map_.taps]
    return map_.scale * np.stack(taps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("padded", [0, 3, 4])
def test_both_directions(dtype, padded):
    """Ranks with and without zeros behind them, vectors or none, both orders of channels."""
    target, rng = emulated(), np.random.default_rng(0)
    gpu = gpu_of(target.tvm_target)
    bb, params, arrays, expected, calls = relax.BlockBuilder(), [], [], [], []

    def argument(array):
        params.append(relax.Var(f"x{len(params)}", relax.TensorType(array.shape, dtype)))
        arrays.append(array)
        return params[-1]

    for map_ in (CROSS, SQUARE, POINT):
        sources = [rng.integers(-9, 10, s).astype(dtype) for s in map_.shapes]
        cin, cout = (c + padded for c in map_.channels)
        whole = np.zeros((len(map_.taps), cin, cout), dtype)
        whole[:, : cin - padded, : cout - padded] = dense(map_, sources)
        variables = [argument(s) for s in sources]
        for turned in (False, True):
            shape = (cout, cin) if turned else (cin, cout)
            func = tap_weight(map_, shape, dtype, turned)
            calls.append((func, variables, [(len(map_.taps), *shape)]))
            expected.append(whole.transpose(0, 2, 1) if turned else whole)
        dw = rng.integers(-9, 10, whole.shape).astype(dtype)
        func = core_grads(map_, (cin, cout), dtype, gpu)
        calls.append((func, [argument(dw)], map_.shapes))
        inner = map_.scale * dw[:, : cin - padded, : cout - padded].transpose(0, 2, 1)
        grads = [np.zeros((*s[:2], int(np.prod(s[2:]))), dtype) for s in map_.shapes]
        for tap, part in zip(map_.taps, inner):
            for i, j in tap:
                grads[i][:, :, j] += part
        expected += [g.reshape(s) for g, s in zip(grads, map_.shapes)]
    with bb.function("main", params, {"num_input": len(params)}):
        with bb.dataflow():
            outs = []
            for k, (func, args, shapes) in enumerate(calls):
                types = [relax.TensorType(s, dtype) for s in shapes]
                made = bb.add_func(func, f"map{k}")
                out = bb.emit(relax.call_tir(made, args, types if len(types) > 1 else types[0]))
                if len(types) == 1:
                    outs.append(out)
                else:
                    outs += [bb.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]
            result = bb.emit_output(relax.Tuple(outs))
        bb.emit_func_output(result)
    mod = bb.get().with_attr("ttsnn.params", tvm.runtime.convert({}))
    for got, right in zip(run(target, mod, arrays), expected, strict=True):
        np.testing.assert_array_equal(got, right)
