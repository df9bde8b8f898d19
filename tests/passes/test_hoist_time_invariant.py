"""HoistTimeInvariant: what sinks below the repetition over time, and what does not."""

import numpy as np
import pytest
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from ttsnn.ops import lif, tt_conv2d
from ttsnn.passes import HoistTimeInvariant

from .graph_tools import assert_same_graph, op_names, program_of, run
from .tt_programs import program

RNG = np.random.default_rng(1)


def repeat(bb, x, steps):
    """A static image for every timestep."""
    wide = bb.emit(relax.op.expand_dims(x, 0))
    return bb.emit(relax.op.broadcast_to(wide, [steps, *x.ty.shape.values]))


def shape_of(mod, index):
    """Shape of the result of the binding ``index`` of main."""
    bindings = [b for block in mod["main"].body.blocks for b in block.bindings]
    return [int(d) for d in bindings[index].var.ty.shape.values]


def test_the_stem_runs_once() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 3, 5, 5), "float64"),
            w: R.Tensor((4, 3, 3, 3), "float64"),
            b: R.Tensor((4, 1, 1), "float64"),
        ) -> R.Tensor((3, 2, 4, 5, 5), "float64"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                e = R.expand_dims(x, axis=[0])
                r = R.broadcast_to(e, R.shape([3, 2, 3, 5, 5]))
                f = R.reshape(r, R.shape([6, 3, 5, 5]))
                y = R.nn.conv2d(f, w, padding=[1, 1, 1, 1], out_dtype="float64")
                z = R.add(y, b)
                u = R.reshape(z, R.shape([3, 2, 4, 5, 5]))
                out = R.nn.relu(u)
                R.output(out)
            return out

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 3, 5, 5), "float64"),
            w: R.Tensor((4, 3, 3, 3), "float64"),
            b: R.Tensor((4, 1, 1), "float64"),
        ) -> R.Tensor((3, 2, 4, 5, 5), "float64"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w, padding=[1, 1, 1, 1], out_dtype="float64")
                z = R.add(y, b)
                u = R.nn.relu(z)
                e = R.expand_dims(u, axis=[0])
                out = R.broadcast_to(e, R.shape([3, 2, 4, 5, 5]))
                R.output(out)
            return out

    values = {"c.weight": RNG.normal(size=(4, 3, 3, 3)), "c.bias": RNG.normal(size=(4, 1, 1))}
    assert_same_graph(HoistTimeInvariant()(program_of(Before, **values)), Expected)


@pytest.mark.parametrize("batch", [1, 2, "n"])
@pytest.mark.parametrize("steps", [1, 3])
def test_numbers_are_kept_up_to_the_neuron(batch, steps: int) -> None:
    def body(bb, x, w):
        r = repeat(bb, x, steps)
        t, n, *rest = r.ty.shape.values
        y = bb.emit(relax.op.reshape(r, [t * n, *rest]))
        y = bb.emit(relax.op.nn.conv2d(y, w["c.weight"], padding=1, out_dtype="float64"))
        y = bb.emit(relax.op.nn.max_pool2d(y, [2, 2], strides=[2, 2]))
        y = bb.emit(relax.op.reshape(y, [t, n, 4, 2, 2]))
        y = bb.emit(relax.op.multiply(y, relax.const(RNG.normal(size=(4, 1, 1)), "float64")))
        v0 = bb.emit(relax.op.zeros([n, 4, 2, 2], "float64"))
        out = bb.emit(lif(y, v0, decay=0.25, v_threshold=0.5))
        spikes = bb.emit(relax.TupleGetItem(out, 0))
        flat = bb.emit(relax.op.reshape(bb.emit(relax.op.add(spikes, y)), [t, n, 16]))
        return bb.emit(relax.op.mean(flat, [0]))

    mod = program((batch, 3, 4, 4), {"c.weight": RNG.normal(size=(4, 3, 3, 3))}, body)
    after = HoistTimeInvariant()(mod)
    conv = next(
        b.var
        for block in after["main"].body.blocks
        for b in block.bindings
        if isinstance(b.value, relax.Call) and b.value.op.name == "relax.nn.conv2d"
    )
    size = conv.ty.shape.values[0]
    if batch != "n":
        assert int(size) == batch
    x = RNG.normal(size=(2 if batch == "n" else batch, 3, 4, 4))
    np.testing.assert_array_equal(run(after, x)[0], run(mod, x)[0])


def test_addition_of_a_value_that_changes_is_where_it_ends() -> None:
    def body(bb, x, w):
        first = bb.emit(relax.op.reshape(bb.emit(relax.op.mean(x, [0])), [1, 2, 3]))
        r = bb.emit(relax.op.broadcast_to(first, [4, 2, 3]))
        return bb.emit(relax.op.add(bb.emit(relax.op.nn.relu(r)), x))

    mod = program((4, 2, 3), {}, body)
    after = HoistTimeInvariant()(mod)
    names = op_names(after)
    assert names.index("nn.relu") < names.index("broadcast_to") < names.index("add")
    x = RNG.normal(size=(4, 2, 3))
    np.testing.assert_array_equal(run(after, x)[0], run(mod, x)[0])


@pytest.mark.parametrize("mode", ["ptt", "htt"])
def test_htt_keeps_its_timesteps(mode: str) -> None:
    shapes = {"g1": (2, 3), "g2": (2, 2, 3), "g3": (2, 2, 3), "g4": (4, 2)}
    params = {f"c.{k}": RNG.normal(size=s) for k, s in shapes.items()}

    def body(bb, x, w):
        cores = [w[f"c.{k}"] for k in shapes]
        options = {"timesteps": 1} if mode == "htt" else {}
        return bb.emit(tt_conv2d(repeat(bb, x, 3), *cores, mode=mode, padding=1, **options))

    mod = program((2, 3, 4, 4), params, body)
    after = HoistTimeInvariant()(mod)
    names = op_names(after)
    assert (names.index("tt.conv2d") < names.index("broadcast_to")) == (mode == "ptt")
    x = RNG.normal(size=(2, 3, 4, 4))
    np.testing.assert_allclose(run(after, x)[0], run(mod, x)[0], rtol=1e-13, atol=1e-14)


def test_event_frames_are_left_alone() -> None:
    def body(bb, x, w):
        y = bb.emit(relax.op.reshape(x, [6, 3, 4, 4]))
        y = bb.emit(relax.op.nn.conv2d(y, w["c.weight"], out_dtype="float64"))
        return bb.emit(relax.op.reshape(y, [3, 2, 4, 2, 2]))

    mod = program((3, 2, 3, 4, 4), {"c.weight": RNG.normal(size=(4, 3, 3, 3))}, body)
    after = HoistTimeInvariant()(mod)
    assert op_names(after) == ["reshape", "nn.conv2d", "reshape"]
    assert shape_of(after, 1)[0] == 6
