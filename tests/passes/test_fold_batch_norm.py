"""FoldBatchNorm: the rewrite, what it leaves alone, and its numbers against NumPy."""

import numpy as np
import pytest
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from ttsnn.ops import tt_conv2d
from ttsnn.passes import FoldBatchNorm
from ttsnn.program import params_of

from .graph_tools import assert_same_graph, op_names, program_of, run
from .tt_programs import program

RNG = np.random.default_rng(0)


def statistics(name, channels, dtype="float64"):
    """Parameters of a batch norm."""
    return {
        f"{name}.weight": RNG.normal(size=channels).astype(dtype),
        f"{name}.bias": RNG.normal(size=channels).astype(dtype),
        f"{name}.running_mean": RNG.normal(size=channels).astype(dtype),
        f"{name}.running_var": RNG.uniform(0.5, 2, size=channels).astype(dtype),
    }


def norm(bb, x, w, name, axis=1):
    """Evaluation-mode batch norm."""
    stats = [w[f"{name}.{k}"] for k in ("weight", "bias", "running_mean", "running_var")]
    out = bb.emit(relax.op.nn.batch_norm(x, *stats, axis, epsilon=1e-5, training=False))
    return bb.emit(relax.TupleGetItem(out, 0))


def affine(p, name):
    """Scale and shift that a batch norm applies."""
    k = p[f"{name}.weight"] / np.sqrt(p[f"{name}.running_var"] + 1e-5)
    return k, p[f"{name}.bias"] - p[f"{name}.running_mean"] * k


def test_conv_with_bias_takes_the_norm_in() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 3, 5, 5), "float64"),
            w: R.Tensor((4, 3, 3, 3), "float64"),
            b: R.Tensor((4,), "float64"),
            g: R.Tensor((4,), "float64"),
            beta: R.Tensor((4,), "float64"),
            mean: R.Tensor((4,), "float64"),
            var: R.Tensor((4,), "float64"),
        ) -> R.Tensor((1, 2, 4, 5, 5), "float64"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w, padding=[1, 1, 1, 1], out_dtype="float64")
                c = R.reshape(b, R.shape([1, 4, 1, 1]))
                z = R.add(y, c)
                n = R.nn.batch_norm(z, g, beta, mean, var, axis=1, training=False)
                o = n[0]
                out = R.reshape(o, R.shape([1, 2, 4, 5, 5]))
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 3, 5, 5), "float64"),
            w: R.Tensor((4, 3, 3, 3), "float64"),
            b: R.Tensor((4, 1, 1), "float64"),
        ) -> R.Tensor((1, 2, 4, 5, 5), "float64"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w, padding=[1, 1, 1, 1], out_dtype="float64")
                z = R.add(y, b)
                out = R.reshape(z, R.shape([1, 2, 4, 5, 5]))
                R.output(out)
            return out

    stats = statistics("bn", 4)
    w, b = RNG.normal(size=(4, 3, 3, 3)), RNG.normal(size=4)
    values = {"conv.weight": w, "conv.bias": b, **stats}
    after = FoldBatchNorm()(program_of(Before, **values))
    assert_same_graph(after, Expected)
    k, shift = affine(stats, "bn")
    weight, bias = params_of(after).values()
    np.testing.assert_allclose(weight, w * k[:, None, None, None], rtol=1e-15)
    np.testing.assert_allclose(bias.ravel(), b * k + shift, rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("kind", ["tt", "linear", "folded time"])
@pytest.mark.parametrize("batch", [1, "n"])
def test_numbers_are_kept(kind: str, batch) -> None:
    if kind == "linear":
        params = {"fc.weight": RNG.normal(size=(6, 4)), **statistics("bn", 6)}

        def body(bb, x, w):
            weight = bb.emit(relax.op.permute_dims(w["fc.weight"]))
            return norm(bb, bb.emit(relax.op.matmul(x, weight)), w, "bn")

        shape: tuple = (batch, 4)
    else:
        shapes = [("g1", (2, 3)), ("g2", (2, 2, 3)), ("g3", (2, 2, 3)), ("g4", (5, 2))]
        params = {f"conv.{n}": RNG.normal(size=s) for n, s in shapes}
        params |= statistics("bn", 5)

        def body(bb, x, w):
            cores = [w[f"conv.g{i}"] for i in range(1, 5)]
            if kind == "folded time":  # [T, N, …] through the layer, [T·N, …] through the norm
                y = bb.emit(tt_conv2d(x, *cores, mode="ptt", padding=1))
                t, n, *rest = y.ty.shape.values
                y = bb.emit(relax.op.reshape(y, [t * n, *rest]))
            else:
                y = bb.emit(tt_conv2d(x, *cores, mode="stt", padding=1))
            return norm(bb, y, w, "bn")

        shape = (2, batch, 3, 4, 5) if kind == "folded time" else (batch, 3, 4, 5)
    mod = program(shape, params, body)
    after = FoldBatchNorm()(mod)
    assert "nn.batch_norm" not in op_names(after)
    assert "multiply" not in op_names(after)
    x = RNG.normal(size=[2 if s == "n" else s for s in shape])
    np.testing.assert_allclose(run(after, x)[0], run(mod, x)[0], rtol=1e-12, atol=1e-14)


def test_norm_behind_a_pool_becomes_scale_and_shift() -> None:
    def body(bb, x, w):
        return norm(bb, bb.emit(relax.op.nn.max_pool2d(x, [2, 2], strides=[2, 2])), w, "bn")

    params = statistics("bn", 3)
    after = FoldBatchNorm()(program((2, 3, 4, 4), params, body))
    assert op_names(after) == ["nn.max_pool2d", "multiply", "add"]
    k, shift = affine(params, "bn")
    x = RNG.normal(size=(2, 3, 4, 4))
    pooled = x.reshape(2, 3, 2, 2, 2, 2).max((3, 5))
    want = pooled * k[:, None, None] + shift[:, None, None]
    np.testing.assert_allclose(run(after, x)[0], want, rtol=1e-14, atol=1e-15)


def test_a_layer_that_something_else_reads_is_left_alone() -> None:
    def body(bb, x, w):
        y = bb.emit(relax.op.nn.conv2d(x, w["c.weight"], padding=1, out_dtype="float64"))
        return bb.emit(relax.op.add(norm(bb, y, w, "bn"), y))

    params = {"c.weight": RNG.normal(size=(3, 3, 3, 3)), **statistics("bn", 3)}
    mod = program((1, 3, 4, 4), params, body)
    after = FoldBatchNorm()(mod)
    assert op_names(after) == ["nn.conv2d", "multiply", "add", "add"]
    x = RNG.normal(size=(1, 3, 4, 4))
    np.testing.assert_allclose(run(after, x)[0], run(mod, x)[0], rtol=1e-12, atol=1e-14)


def test_one_weight_under_two_norms_becomes_two() -> None:
    def body(bb, x, w):
        ys = [norm(bb, bb.emit(relax.op.matmul(x, w["fc.weight"])), w, n) for n in ("a", "b", "a")]
        return bb.emit(relax.op.concat(ys, 1))

    params = {"fc.weight": RNG.normal(size=(4, 3)), **statistics("a", 3), **statistics("b", 3)}
    mod = program((2, 4), params, body)
    after = FoldBatchNorm()(mod)
    assert len(params_of(after)) == 4
    x = RNG.normal(size=(2, 4))
    np.testing.assert_allclose(run(after, x)[0], run(mod, x)[0], rtol=1e-12, atol=1e-14)


def test_without_batch_norm_nothing_changes() -> None:
    def body(bb, x, w):
        return bb.emit(relax.op.add(bb.emit(relax.op.matmul(x, w["fc.weight"])), w["fc.bias"]))

    params = {"fc.weight": RNG.normal(size=(4, 3)), "fc.bias": RNG.normal(size=3)}
    mod = program((2, 4), params, body)
    after = FoldBatchNorm()(mod)
    assert list(params_of(after)) == ["fc.weight", "fc.bias"]
    assert op_names(after) == op_names(mod)
