"""ToChannelsLast, FuseLayers and PackWeights: graphs and numbers on small programs."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from ttsnn.ops import lif, tt_conv2d
from ttsnn.passes import HoistTimeInvariant
from ttsnn.passes.cpu.pack_weights import PackWeights
from ttsnn.passes.layers import layer_config_of
from ttsnn.passes.layers.channels_last import ToChannelsLast
from ttsnn.passes.layers.fuse_layers import FuseLayers
from ttsnn.program import params_of

from .graph_tools import assert_same_graph, op_names, program_of, run
from .tt_programs import program

RNG = np.random.default_rng(2)
NEURON = {"decay": 0.25, "v_threshold": 0.3}


def layers(mod):
    """Configs of the layers of main, in order."""
    calls = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    calls = [c for c in calls if isinstance(c, relax.Call) and c.op.name == "relax.snn.layer"]
    return [layer_config_of(c) for c in calls]


def neuron(bb, x, index=0, **attrs):
    """A neuron from rest; ``index`` 0 are its spikes, 1 its last membrane."""
    v0 = bb.emit(relax.op.zeros(list(x.ty.shape.values)[1:], str(x.ty.dtype)))
    return bb.emit(relax.TupleGetItem(bb.emit(lif(x, v0, **(NEURON | attrs))), index))


def folded_conv(bb, x, weight, **options):
    """conv2d on every timestep, time folded into the batch."""
    t, n, *rest = x.ty.shape.values
    y = bb.emit(relax.op.reshape(x, [t * n, *rest]))
    y = bb.emit(relax.op.nn.conv2d(y, weight, out_dtype=str(x.ty.dtype), **options))
    return bb.emit(relax.op.reshape(y, [t, n, *list(y.ty.shape.values)[1:]]))


def lower(mod):
    """The three passes, each checked to be well-formed and to keep the numbers."""
    steps = [mod]
    for step in (ToChannelsLast(), FuseLayers(), PackWeights(tvm.target.Target("llvm"))):
        steps.append(step(steps[-1]))
        assert relax.analysis.check_well_formed(steps[-1])
    return steps


def check(mod, *inputs):
    """Numbers of every prefix; returns the modules."""
    steps = lower(mod)
    want = run(mod, *inputs)
    for step in steps[1:]:
        for got, w in zip(run(step, *inputs), want, strict=True):
            np.testing.assert_allclose(got, w, rtol=1e-12, atol=1e-13)
    return steps


def test_conv_relu_becomes_a_layer_between_transposes() -> None:
    @I.ir_module
    class Before:
        @R.function
        def main(
            x: R.Tensor((2, 3, 4, 4), "float64"), w: R.Tensor((5, 3, 1, 1), "float64")
        ) -> R.Tensor((2, 5, 4, 4), "float64"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                y = R.nn.conv2d(x, w, out_dtype="float64")
                out = R.nn.relu(y)
                R.output(out)
            return out

    after = ToChannelsLast()(program_of(Before, conv__weight=RNG.normal(size=(5, 3, 1, 1))))
    (config,) = layers(after)
    text = config.to_json()

    @I.ir_module
    class Expected:
        @R.function
        def main(
            x: R.Tensor((2, 3, 4, 4), "float64"), w: R.Tensor((1, 3, 5), "float64")
        ) -> R.Tensor((2, 5, 4, 4), "float64"):
            R.func_attr({"num_input": 1})
            with R.dataflow():
                a = R.reshape(x, R.shape([1, 2, 3, 4, 4]))
                b = R.permute_dims(a, axes=[0, 1, 3, 4, 2])
                y = R.snn.layer(b, w, config=text)
                z = R.nn.relu(y)
                c = R.permute_dims(z, axes=[0, 1, 4, 2, 3])
                out = R.reshape(c, R.shape([2, 5, 4, 4]))
                R.output(out)
            return out

    assert_same_graph(after, Expected)
    assert (config.name, config.T, config.lif) == ("conv", 1, None)


@pytest.mark.parametrize("batch", [1, 2, "n"])
def test_residual_block_becomes_two_layers(batch) -> None:
    """neuron → conv → neuron → conv + x, and a neuron and a conv that read the sum."""
    shapes = {"a": (4, 4, 3, 3), "b": (4, 4, 3, 3), "c": (6, 4, 1, 1)}
    params = {f"{k}.weight": RNG.normal(size=s) for k, s in shapes.items()}
    params["a.bias"] = RNG.normal(size=(4, 1, 1))

    def body(bb, x, w):
        y = folded_conv(bb, neuron(bb, x), w["a.weight"], padding=1)
        y = neuron(bb, bb.emit(relax.op.add(y, w["a.bias"])))
        y = bb.emit(relax.op.add(folded_conv(bb, y, w["b.weight"], padding=1), x))
        shortcut = folded_conv(bb, y, w["c.weight"], strides=2)  # before the neuron reads y
        spikes = neuron(bb, y)
        return bb.emit(relax.op.add(shortcut, folded_conv(bb, spikes, w["c.weight"], strides=2)))

    size = 2 if batch == "n" else batch
    mod = program((3, batch, 4, 4, 4), params, body)
    steps = check(mod, RNG.normal(size=(3, size, 4, 4, 4)))
    found = {(c.name, c.bias, c.residual, c.lif is not None, c.emit) for c in layers(steps[-1])}
    assert found == {
        ("a", True, False, True, ("spikes",)),
        ("b", False, True, True, ("membrane", "spikes")),
        ("c", False, False, False, ("membrane",)),
        ("c", False, True, False, ("membrane",)),
    }
    assert op_names(steps[-1]).count("snn.lif") == 1  # of the input, which is no layer


@pytest.mark.parametrize("readers", [1, 2])
def test_static_stem_contracts_once(readers: int) -> None:
    params = {
        "stem.weight": RNG.normal(size=(4, 3, 3, 3)),
        "b.weight": RNG.normal(size=(4,) * 2 + (3, 3)),
    }

    def body(bb, x, w):
        wide = bb.emit(relax.op.broadcast_to(bb.emit(relax.op.expand_dims(x, 0)), [3, 2, 3, 4, 4]))
        y = folded_conv(bb, wide, w["stem.weight"], padding=1)
        z = folded_conv(bb, neuron(bb, y), w["b.weight"], padding=1)
        return bb.emit(relax.op.add(z, y)) if readers == 2 else z

    mod = HoistTimeInvariant()(program((2, 3, 4, 4), params, body))
    steps = check(mod, RNG.normal(size=(2, 3, 4, 4)))
    configs = layers(steps[-1])
    fused = next(c for c in configs if c.lif is not None)
    assert (fused.name, fused.T, fused.x_T, fused.emit) == ("stem", 3, 1, ("spikes",))
    assert "broadcast_to" not in op_names(steps[-1])
    if readers == 2:
        last = configs[-1]
        assert (last.name, last.residual_T, last.T) == ("b", 1, 3)


@pytest.mark.parametrize("x_steps", [1, 3])
def test_htt_has_two_chains(x_steps: int) -> None:
    shapes = ((2, 3), (2, 2, 3), (2, 2, 3), (4, 2))
    params = {f"c.g{i + 1}": RNG.normal(size=s) for i, s in enumerate(shapes)}

    def body(bb, x, w):
        if x_steps == 1:
            x = bb.emit(relax.op.broadcast_to(x, [3, 2, 3, 4, 4]))
        y = bb.emit(tt_conv2d(x, *w.values(), mode="htt", timesteps=2, strides=2, padding=1))
        return neuron(bb, y, 1)

    steps = check(
        program((x_steps, 2, 3, 4, 4), params, body), RNG.normal(size=(x_steps, 2, 3, 4, 4))
    )
    (config,) = layers(steps[-1])
    assert (config.T, config.timesteps, len(config.stages), len(config.half_stages)) == (3, 2, 3, 2)
    assert "v_last" in config.emit


@pytest.mark.parametrize("batch", [1, 3, "n"])
def test_linear_layers_take_the_batch_as_rows(batch) -> None:
    params = {
        "a.weight": RNG.normal(size=(8, 12)),
        "a.bias": RNG.normal(size=8),
        "b.weight": RNG.normal(size=(5, 8)),
    }

    def body(bb, x, w):
        t, n, *_ = x.ty.shape.values
        y = bb.emit(relax.op.reshape(x, [t * n, 12]))
        y = bb.emit(relax.op.matmul(y, bb.emit(relax.op.permute_dims(w["a.weight"]))))
        y = bb.emit(relax.op.add(w["a.bias"], y))
        spikes = neuron(bb, bb.emit(relax.op.reshape(y, [t, n, 8])))
        mean = bb.emit(relax.op.mean(spikes, [0]))
        return bb.emit(relax.op.matmul(mean, bb.emit(relax.op.permute_dims(w["b.weight"]))))

    size = 2 if batch == "n" else batch
    steps = check(program((2, batch, 3, 2, 2), params, body), RNG.normal(size=(2, size, 3, 2, 2)))
    first, second = layers(steps[-1])
    assert (first.name, first.bias, first.emit) == ("a", True, ("spikes",))
    assert first.stages[0].out_size == ((1, batch) if isinstance(batch, int) else (1, 1))
    assert (second.name, second.T) == ("b", 1)


def test_pools_reductions_and_concatenation_stay_channels_last() -> None:
    params = {"c.weight": RNG.normal(size=(4, 3, 3, 3)), "k.scale": RNG.normal(size=(1, 8, 1, 1))}

    def body(bb, x, w):
        y = bb.emit(relax.op.nn.conv2d(x, w["c.weight"], padding=1, out_dtype="float64"))
        y = bb.emit(relax.op.nn.max_pool2d(y, [2, 2], strides=[2, 2]))
        z = bb.emit(relax.op.nn.avg_pool2d(y, [3, 3], padding=[1, 1, 1, 1]))
        both = bb.emit(relax.op.concat([y, z], 1))
        both = bb.emit(relax.op.multiply(both, w["k.scale"]))
        gate = bb.emit(relax.op.sigmoid(bb.emit(relax.op.mean(both, [2, 3], True))))
        return bb.emit(relax.op.mean(bb.emit(relax.op.multiply(both, gate)), [2, 3]))

    steps = check(program((2, 3, 6, 4), params, body), RNG.normal(size=(2, 3, 6, 4)))
    assert op_names(steps[-1]).count("permute_dims") == 1


def test_what_is_unknown_runs_in_the_programs_layout() -> None:
    params = {"c.weight": RNG.normal(size=(4, 4, 3, 3)), "d.weight": RNG.normal(size=(4, 1, 3, 3))}

    def body(bb, x, w):
        y = bb.emit(relax.op.nn.conv2d(x, w["c.weight"], padding=1, out_dtype="float64"))
        y = bb.emit(relax.op.strided_slice(y, [1, 3], [0, 1], [4, 4]))
        y = bb.emit(relax.op.nn.conv2d(y, w["d.weight"], groups=4, out_dtype="float64"))
        return bb.emit(relax.op.nn.softmax(bb.emit(relax.op.permute_dims(y, [0, 2, 3, 1]))))

    steps = check(program((2, 4, 5, 6), params, body), RNG.normal(size=(2, 4, 5, 6)))
    assert [c.name for c in layers(steps[-1])] == ["c"]
    assert "nn.conv2d" in op_names(steps[-1])


def test_neurons_with_tensors_for_attributes_stay_apart() -> None:
    params = {"c.weight": RNG.normal(size=(4, 3, 1, 1)), "n.decay": RNG.uniform(size=(4, 1, 1))}

    def body(bb, x, w):
        y = folded_conv(bb, x, w["c.weight"])
        v0 = bb.emit(relax.op.zeros([2, 4, 3, 3], "float64"))
        out = bb.emit(lif(y, v0, decay=w["n.decay"], v_threshold=0.3))
        return bb.emit(relax.TupleGetItem(out, 0))

    steps = check(program((2, 2, 3, 3, 3), params, body), RNG.normal(size=(2, 2, 3, 3, 3)))
    assert "snn.lif" in op_names(steps[-1])
    assert layers(steps[-1])[0].lif is None


def test_a_membrane_that_is_given_is_an_operand() -> None:
    params = {"c.weight": RNG.normal(size=(4, 3, 1, 1))}

    def body(bb, x, w):
        y = folded_conv(bb, x, w["c.weight"])
        v0 = bb.emit(relax.op.mean(y, [0]))  # known only after the layer: cannot move into it
        out = bb.emit(lif(y, v0, **NEURON))
        z = folded_conv(
            bb, bb.emit(relax.TupleGetItem(out, 0)), relax.const(np.ones((4, 4, 1, 1)), "float64")
        )
        out = bb.emit(lif(z, v0, **NEURON))  # known before this one
        return bb.emit(relax.TupleGetItem(out, 1))

    steps = check(program((2, 2, 3, 3, 3), params, body), RNG.normal(size=(2, 2, 3, 3, 3)))
    first, second = layers(steps[-1])
    assert first.lif is None
    assert second.v0
    assert second.emit == ("spikes", "v_last")


def test_packing_changes_weights_alone() -> None:
    params = {"c.weight": RNG.normal(size=(5, 3, 3, 3))}

    def body(bb, x, w):
        return bb.emit(relax.op.nn.conv2d(x, w["c.weight"], out_dtype="float64"))

    steps = lower(program((1, 3, 4, 4), params, body))
    assert [v.ndim for v in params_of(steps[2]).values()] == [3]
    assert [v.ndim for v in params_of(steps[3]).values()] == [1]
    assert layers(steps[2])[0].packing is None
    assert layers(steps[3])[0].packing is not None
