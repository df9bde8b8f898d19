"""ExposeSpikes: which results are added, in which order."""

import json

import numpy as np
from tvm import relax

from ttsnn.ops import lif
from ttsnn.passes import ExposeSpikes

from .graph_tools import run
from .tt_programs import program


def two_neurons(bb, x, _w):
    """Two neurons one after another, and the mean."""
    v0 = bb.emit(relax.op.zeros([2, 5], "float64"))
    a = bb.emit(relax.TupleGetItem(bb.emit(lif(x, v0, decay=0.5, v_threshold=0.3)), 0))
    b = bb.emit(relax.TupleGetItem(bb.emit(lif(a, v0, decay=0.5, v_threshold=0.9)), 0))
    return bb.emit(relax.op.mean(b, [0]))


def numpy_lif(x, decay, threshold):
    """Hard reset to 0 after firing."""
    v, out = np.zeros(x.shape[1:]), []
    for step in x:
        h = decay * v + step
        s = (h > threshold).astype(x.dtype)
        v = h * (1 - s)
        out.append(s)
    return np.stack(out)


def test_spikes_follow_the_results_in_order_of_execution() -> None:
    mod = program((3, 2, 5), {}, two_neurons)
    mod = mod.with_attr("ttsnn.meta", json.dumps({"outputs": [{"name": "y"}]}))
    after = ExposeSpikes()(mod)
    x = np.random.default_rng(0).normal(size=(3, 2, 5))
    mean, first, second = run(after, x)
    want = numpy_lif(x, 0.5, 0.3)
    np.testing.assert_array_equal(first, want)
    np.testing.assert_array_equal(second, numpy_lif(want, 0.5, 0.9))
    np.testing.assert_array_equal(mean, run(mod, x)[0])
    outputs = json.loads(str(after.attrs["ttsnn.meta"]))["outputs"]
    assert [o["name"] for o in outputs] == ["y", "spikes_0", "spikes_1"]
    assert outputs[1]["shape"] == [3, 2, 5]


def test_without_neurons_nothing_changes() -> None:
    mod = program((2, 3), {}, lambda bb, x, w: bb.emit(relax.op.nn.relu(x)))
    after = ExposeSpikes()(mod)
    assert isinstance(after["main"].ret_ty, relax.TensorType)
