"""relax.snn.lif against NumPy, its gradient against PyTorch autograd."""

import itertools
import math

import numpy as np
import pytest
import torch
from tvm import relax

import ttsnn.ops
from ttsnn.errors import PassError, TTSNNError
from ttsnn.lif_attrs import LifAttrs

RESETS = ("hard", "soft", "none")
TIMINGS = ("after_fire", "before_decay", "after_decay")
FORMS = ("multiply", "euler", "euler_raw_input")
SURROGATES = ("rectangle", "sigmoid", "arctan", "triangle", "fast_sigmoid", "erf")
RNG = np.random.default_rng(7)


def oracle(x, v0, c, decay=None, threshold=None):
    """One neuron at a time, in plain Python: the equations as the libraries write them."""
    th = np.broadcast_to(c.v_threshold if threshold is None else threshold, v0.shape)
    default = c.decay if c.form == "multiply" else 1 / c.tau
    k = np.broadcast_to(default if decay is None else decay, v0.shape)
    rest = c.v_reset if c.reset != "soft" else 0.0
    spikes, last = np.zeros_like(x), v0.copy()

    def fires(v, t):
        return v > t if c.fire == ">" else v >= t

    def reset(v, t):
        return {"hard": c.v_reset, "soft": v - t, "none": v}[c.reset]

    for i in np.ndindex(v0.shape):
        v = v0[i]
        for t in range(x.shape[0]):
            before = fires(v, th[i])
            if before and c.reset_timing == "before_decay":
                v = reset(v, th[i])
            if c.form == "multiply":
                h = k[i] * v + c.gain * x[(t, *i)]
            elif c.form == "euler":
                h = v + (x[(t, *i)] - (v - rest)) * k[i]
            else:
                h = v - (v - rest) * k[i] + x[(t, *i)]
            if before and c.reset_timing == "after_decay":
                h = reset(h, th[i])
            s = fires(h, th[i])
            spikes[(t, *i)] = s
            v = reset(h, th[i]) if s and c.reset_timing == "after_fire" else h
        last[i] = v
    return spikes, last


DERIVATIVES = {
    "rectangle": lambda u, w: (u.abs() < w).to(u) / (2 * w),
    "sigmoid": lambda u, w: torch.sigmoid(u / w) * (1 - torch.sigmoid(u / w)) / w,
    "arctan": lambda u, w: 1 / (2 * w * (1 + (math.pi * u / (2 * w)) ** 2)),
    "triangle": lambda u, w: torch.relu(1 - u.abs() / w) / w,
    "fast_sigmoid": lambda u, w: 1 / (1 + u.abs() / w) ** 2,
    "erf": lambda u, w: torch.exp(-((u / w) ** 2)) / (w * math.sqrt(math.pi)),
}


class Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, c):
        ctx.save_for_backward(u)
        ctx.c = c
        return (u > 0).to(u) if c.fire == ">" else (u >= 0).to(u)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g * DERIVATIVES[ctx.c.surrogate](u, ctx.c.surrogate_width), None


def torch_lif(x, v, c, decay=None, threshold=None):
    """The unrolled loop that a PyTorch user would write."""
    th = c.v_threshold if threshold is None else threshold
    rest = c.v_reset if c.reset != "soft" else 0.0
    spikes = []

    def reset(a, s):
        s = s.detach() if c.detach_reset else s
        if c.reset == "hard":
            return (1 - s) * a + s * c.v_reset
        return a - s * th if c.reset == "soft" else a

    for x_t in x:
        r = Spike.apply(v - th, c) if c.reset_timing != "after_fire" else None
        if c.reset_timing == "before_decay":
            v = reset(v, r)
        k = decay if decay is not None else 1 / c.tau
        if c.form == "multiply":
            h = (c.decay if decay is None else decay) * v + c.gain * x_t
        elif c.form == "euler":
            h = v + (x_t - (v - rest)) * k
        else:
            h = v - (v - rest) * k + x_t
        if c.reset_timing == "after_decay":
            h = reset(h, r)
        s = Spike.apply(h - th, c)
        spikes.append(s)
        v = reset(h, s) if c.reset_timing == "after_fire" else h
    return torch.stack(spikes), v


def attrs_of(c):
    return {k: v for k, v in c.to_dict().items() if not k.endswith("_operand")}


def data(steps, shape, dtype="float64"):
    x = RNG.normal(0.4, 0.8, (steps, *shape)).astype(dtype)
    return {"x": x, "v0": RNG.normal(0.3, 0.6, shape).astype(dtype)}


def call(c, names=()):
    """Builder of a lif call whose further operands are called ``names``."""

    def body(bb, x, v0, *rest):
        return ttsnn.ops.lif(x, v0, **{**attrs_of(c), **dict(zip(names, rest))})

    return body


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
def test_forward_of_every_setting(harness, reset, timing):
    cases = [
        LifAttrs(
            decay=0.7, gain=gain, tau=1.7, v_threshold=0.6, v_reset=-0.2, reset=reset,
            fire=fire, reset_timing=timing, form=form,
        )
        for form, fire, gain in itertools.product(FORMS, (">", ">="), (1.0, 0.8))
    ]  # fmt: skip
    a = data(5, (2, 3))
    out = harness.eval(lambda bb, *v: relax.Tuple([bb.emit(call(c)(bb, *v)) for c in cases]), a)
    for i, c in enumerate(cases):
        spikes, last = oracle(a["x"], a["v0"], c)
        np.testing.assert_array_equal(out[2 * i], spikes)
        np.testing.assert_allclose(out[2 * i + 1], last, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("fire", [">", ">="])
def test_a_membrane_exactly_at_the_threshold(harness, fire):
    a = {"x": np.full((1, 1, 2), 0.5), "v0": np.array([[0.0, 1.0]])}
    spikes, last = harness.eval(call(LifAttrs(fire=fire)), a)
    np.testing.assert_array_equal(spikes, [[[float(fire == ">="), 1.0]]])
    np.testing.assert_array_equal(last, [[0.0 if fire == ">=" else 0.5, 0.0]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("steps", "shape"), [(1, (1,)), (1, (1, 3, 5, 7)), (3, (2, 1, 3))])
def test_shapes_dtypes_and_symbolic_batch(harness, steps, shape, dtype):
    a = data(steps, shape, dtype)
    c = LifAttrs()
    for batch in (None, {"x": 1, "v0": 0}):
        spikes, last = harness.eval(call(c), a, batch)
        assert spikes.dtype == last.dtype == dtype
        # decay 1/4 is exact, so the spikes are the oracle's in both dtypes
        want = oracle(a["x"], a["v0"], c)
        np.testing.assert_array_equal(spikes, want[0])
        np.testing.assert_allclose(last, want[1], rtol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shapes", [((), (3, 1)), ((1, 3, 4), (4,)), ((2, 3, 4), (1,))])
def test_tensor_operands_broadcast(harness, form, shapes):
    a = data(4, (2, 3, 4))
    a["decay"] = RNG.uniform(0.3, 0.9, shapes[0])
    a["v_threshold"] = RNG.uniform(0.3, 0.9, shapes[1])
    c = LifAttrs(form=form, v_reset=0.1)
    got = harness.eval(call(c, ("decay", "v_threshold")), a, {"x": 1, "v0": 0})
    if shapes[0] == (2, 3, 4):
        got = harness.eval(call(c, ("decay", "v_threshold")), a)
    want = oracle(a["x"], a["v0"], c, a["decay"], a["v_threshold"])
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], rtol=1e-14, atol=1e-14)


def loss(c, names):
    """Builder of Σ spikes·a + Σ v_last·b for given a, b."""

    def body(bb, x, v0, a, b, *rest):
        out = bb.emit(ttsnn.ops.lif(x, v0, **{**attrs_of(c), **dict(zip(names, rest))}))
        first = bb.emit(relax.op.sum(bb.emit(relax.op.multiply(bb.emit(out[0]), a))))
        second = bb.emit(relax.op.sum(bb.emit(relax.op.multiply(bb.emit(out[1]), b))))
        return relax.op.add(first, second)

    return body


def check_gradient(harness, c, names=(), shapes=(), steps=5, shape=(2, 3)):
    a = data(steps, shape)
    a["a"], a["b"] = RNG.normal(size=(steps, *shape)), RNG.normal(size=shape)
    a |= {n: RNG.uniform(0.3, 0.8, s) for n, s in zip(names, shapes)}
    wrt = ["x", "v0", *names]
    got = harness.grads(loss(c, names), a, wrt)
    t = {k: torch.tensor(v, requires_grad=k in wrt) for k, v in a.items()}
    spikes, last = torch_lif(t["x"], t["v0"], c, t.get("decay"), t.get("v_threshold"))
    (spikes * t["a"]).sum().add((last * t["b"]).sum()).backward()
    assert 0 < spikes.mean() < 1
    for name in wrt:
        want = t[name].grad.numpy()
        assert np.abs(want).max() > 0, name
        np.testing.assert_allclose(got[name], want, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("reset", RESETS)
def test_gradient_is_backpropagation_through_time(harness, reset, timing, detach):
    if reset == "none" and (timing != "after_fire" or not detach):
        pytest.skip("the same computation as another case")
    # the reset's gradient and the update's do not meet: one form is enough to test the former
    for form in FORMS if detach else FORMS[:1]:
        c = LifAttrs(
            decay=0.8, gain=0.9, tau=1.6, v_reset=-0.1, reset=reset, reset_timing=timing,
            form=form, detach_reset=detach, surrogate="arctan", surrogate_width=0.7,
        )  # fmt: skip
        check_gradient(harness, c, ("decay", "v_threshold"), ((3,), (2, 1)))


@pytest.mark.parametrize("surrogate", SURROGATES)
def test_gradient_of_every_surrogate(harness, surrogate):
    c = LifAttrs(surrogate=surrogate, surrogate_width=0.6, detach_reset=False, reset="soft")
    check_gradient(harness, c, shape=(2, 3, 2))


def test_gradient_of_each_operand_alone_and_of_one_step(harness):
    check_gradient(harness, LifAttrs(form="euler"), ("decay",), ((),))
    check_gradient(harness, LifAttrs(reset="soft"), ("v_threshold",), ((1, 3),))
    check_gradient(harness, LifAttrs(), steps=1, shape=(1, 4, 3))


def test_gradient_in_float32(harness):
    a = {k: v.astype("float32") for k, v in data(3, (2, 4)).items()}
    a |= {"a": np.ones((3, 2, 4), "float32"), "b": np.ones((2, 4), "float32")}
    c = LifAttrs(surrogate="sigmoid")
    got = harness.grads(loss(c, ()), a, ["x", "v0"])
    t = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in a.items()}
    spikes, last = torch_lif(t["x"], t["v0"], c)
    (spikes.sum() + last.sum()).backward()
    assert got["x"].dtype == np.float32
    for name in ("x", "v0"):
        np.testing.assert_allclose(got[name], t[name].grad, rtol=2e-6, atol=1e-6)


def test_gradient_without_spikes_is_the_finite_difference(harness):
    """Below the threshold the membrane is smooth in every input: no surrogate is needed."""
    c = LifAttrs(form="euler", v_reset=-0.3, v_threshold=50.0, surrogate_width=0.01)
    a = data(4, (1, 3)) | {"decay": np.array([0.4, 0.5, 0.6])}
    a |= {"a": np.zeros((4, 1, 3)), "b": RNG.normal(size=(1, 3))}
    order = ["x", "v0", "a", "b", "decay"]
    a = {k: a[k] for k in order}
    got = harness.grads(loss(c, ("decay",)), a, ["x", "v0", "decay"])

    def value(arrays):
        _, last = oracle(arrays["x"], arrays["v0"], c, arrays["decay"])
        return (last * arrays["b"]).sum()

    for name in ("x", "v0", "decay"):
        for i in np.ndindex(a[name].shape):
            step = np.zeros_like(a[name])
            step[i] = 1e-5
            high, low = (value(a | {name: a[name] + s * step}) for s in (1, -1))
            assert got[name][i] == pytest.approx((high - low) / 2e-5, rel=1e-7, abs=1e-9)


def test_wrong_operands_name_op_shapes_and_cure():
    def var(name, shape, dtype="float32"):
        return relax.Var(name, relax.TensorType(shape, dtype))

    x, v0 = var("x", [4, 2, 3]), var("v0", [2, 3])
    cases = [
        ((var("x", [4]), v0), {}, r"relax.snn.lif: x must be \[T, N, …\], got \[4\]"),
        ((x, var("v0", [4, 2, 3])), {}, r"v0 \[4, 2, 3\].*one timestep of x \[4, 2, 3\]"),
        ((x, var("v0", [2, 4])), {}, r"v0 \[2, 4\].*x \[4, 2, 3\], \[2, 3\]"),
        ((var("x", [4, 2, 3], "int32"), v0), {}, r"dtype int32; cast it to float32 or float64"),
        ((x, var("v0", [2, 3], "float64")), {}, r"v0 \[2, 3\] has dtype float64 but x .* float32"),
        ((x, v0), {"decay": var("d", [2])}, r"decay \[2\] does not broadcast .* \[2, 3\]"),
        ((x, v0), {"v_threshold": var("t", [1, 1, 1, 1])}, r"v_threshold .* does not broadcast"),
        ((var("x", [0, 2, 3]), v0), {}, r"no timestep"),
    ]
    for operands, attrs, message in cases:
        with pytest.raises(PassError, match=message):
            ttsnn.ops.lif(*operands, **attrs)
    with pytest.raises(TTSNNError, match="decay_operand is set, so give decay as a tensor"):
        ttsnn.ops.lif(x, v0, decay_operand=True)


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"reset": "zero"}, "unknown reset 'zero'; use one of 'hard', 'soft', 'none'"),
        ({"surrogate": "relu"}, "unknown surrogate 'relu'"),
        ({"tau": 0.0, "form": "euler"}, "tau must be positive"),
        ({"decay": float("nan")}, "decay must be a finite number"),
        ({"surrogate_width": 0}, "surrogate_width must be positive"),
        ({"detach_reset": "yes"}, "detach_reset must be true or false"),
        ({"beta": 0.9}, "unknown attribute beta"),
    ],
)
def test_wrong_attributes(attrs, message):
    with pytest.raises(TTSNNError, match=message):
        LifAttrs.from_dict(attrs)


def test_attributes_survive_a_dict():
    c = LifAttrs(decay=1 / 3, reset="none", detach_reset=False)
    assert LifAttrs.from_dict(c.to_dict()) == c
    assert c.rest == 0.0
    assert LifAttrs(v_reset=0.3).rest == 0.3
    assert LifAttrs(v_reset=0.3, reset="soft").rest == 0.0
