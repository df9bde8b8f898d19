"""The neuron against a NumPy loop, its gradient against autograd, and its export."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ttsnn.errors import ModelImportError, TTSNNError
from ttsnn.lif_attrs import FIRES, FORMS, RESET_TIMINGS, RESETS, SURROGATES, LifAttrs
from ttsnn.models import LIF, lif

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
SETTINGS = list(itertools.product(FORMS, RESETS, RESET_TIMINGS, FIRES))


def numpy_lif(x, v0, a: LifAttrs, decay=None, th=None):
    """The module docstring of lif_attrs, sample by sample, in plain Python."""
    decay = np.broadcast_to(a.decay if decay is None else decay, v0.shape)
    th = np.broadcast_to(a.v_threshold if th is None else th, v0.shape)
    spikes, last = np.zeros_like(x), v0.copy()
    rest = 0.0 if a.reset == "soft" else a.v_reset

    def fires(v, i):
        return v > th[i] if a.fire == ">" else v >= th[i]

    def reset(v, s, i):
        if a.reset == "hard":
            return a.v_reset if s else v
        return v - s * th[i] if a.reset == "soft" else v

    for i in np.ndindex(v0.shape):
        v = v0[i]
        for t in range(x.shape[0]):
            r = fires(v, i)
            if a.reset_timing == "before_decay":
                v = reset(v, r, i)
            if a.form == "multiply":
                h = decay[i] * v + (x[(t, *i)] if a.gain == 1 else a.gain * x[(t, *i)])
            elif a.form == "euler":
                h = v + (x[(t, *i)] - (v - rest)) / a.tau
            else:
                h = v - (v - rest) / a.tau + x[(t, *i)]
            if a.reset_timing == "after_decay":
                h = reset(h, r, i)
            s = fires(h, i)
            spikes[(t, *i)] = s
            v = reset(h, s, i) if a.reset_timing == "after_fire" else h
        last[i] = v
    return spikes, last


class Spike(torch.autograd.Function):
    """Heaviside with the surrogates' formulas, written from their definitions."""

    @staticmethod
    def forward(ctx, u, ge, name, w):
        ctx.save_for_backward(u)
        ctx.name, ctx.w = name, w
        return (u >= 0 if ge else u > 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        w = ctx.w
        d = {
            "rectangle": (u.abs() < w).to(u.dtype) / (2 * w),
            "sigmoid": torch.sigmoid(u / w) * (1 - torch.sigmoid(u / w)) / w,
            "arctan": 1 / (2 * w) / (1 + (torch.pi * u / (2 * w)) ** 2),
            "triangle": (1 - u.abs() / w).clamp(min=0) / w,
            "fast_sigmoid": 1 / (1 + u.abs() / w) ** 2,
            "erf": torch.exp(-((u / w) ** 2)) / (w * torch.pi**0.5),
        }[ctx.name]
        return g * d, None, None, None


def autograd_lif(x, v0, a: LifAttrs, decay=None, th=None):
    """The neuron by autograd: resets as sums and products with the spike."""
    th = a.v_threshold if th is None else th
    rest = 0.0 if a.reset == "soft" else a.v_reset

    def fires(v):
        return Spike.apply(v - th, a.fire == ">=", a.surrogate, a.surrogate_width)

    def reset(v, s):
        s = s.detach() if a.detach_reset else s
        if a.reset == "hard":
            return s * a.v_reset + (1 - s) * v
        return v - s * th if a.reset == "soft" else v

    v, out = v0, []
    for t in range(x.shape[0]):
        r = fires(v)
        if a.reset_timing == "before_decay":
            v = reset(v, r)
        if a.form == "multiply":
            h = (a.decay if decay is None else decay) * v + a.gain * x[t]
        else:
            rate = 1 / a.tau if decay is None else decay
            h = v + (x[t] - (v - rest)) * rate if a.form == "euler" else v - (v - rest) * rate
            h = h + x[t] if a.form == "euler_raw_input" else h
        if a.reset_timing == "after_decay":
            h = reset(h, r)
        s = fires(h)
        out.append(s)
        v = reset(h, s) if a.reset_timing == "after_fire" else h
    return torch.stack(out), v


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("form", "reset", "timing", "fire"), SETTINGS)
@pytest.mark.parametrize("steps", [1, 5])
def test_equals_the_numpy_loop_bit_for_bit(form, reset, timing, fire, steps) -> None:
    a = LifAttrs(
        form=form, reset=reset, reset_timing=timing, fire=fire, gain=0.7, v_reset=-0.1, tau=1.7
    )
    # multiples of 1/4 hit the threshold exactly, so > and >= differ
    x = (draw(1, steps, 2, 3, 1, 2) * 4).round() / 4
    v0 = (draw(2, 2, 3, 1, 2) * 4).round() / 4
    spikes, last = lif(x, v0, **a.to_dict())
    expected, expected_last = numpy_lif(x.numpy(), v0.numpy(), a)
    np.testing.assert_array_equal(spikes.numpy(), expected)
    np.testing.assert_array_equal(last.numpy(), expected_last)


@pytest.mark.parametrize(("form", "reset", "timing", "fire"), SETTINGS)
@pytest.mark.parametrize("detach", [True, False])
def test_gradients_equal_autograd(form, reset, timing, fire, detach) -> None:
    names = list(SURROGATES)
    name = names[(SETTINGS.index((form, reset, timing, fire)) + detach) % len(names)]
    a = LifAttrs(
        form=form,
        reset=reset,
        reset_timing=timing,
        fire=fire,
        gain=0.7,
        v_reset=-0.1,
        tau=1.7,
        detach_reset=detach,
        surrogate=name,
        surrogate_width=0.8,
        decay_operand=True,
        threshold_operand=True,
    )
    tensors = [draw(3, 4, 2, 3, 2), draw(4, 2, 3, 2), draw(5, 3, 1).sigmoid(), draw(6, 1).exp() / 2]
    tensors = [t.requires_grad_() for t in tensors]
    gs, gv = draw(7, 4, 2, 3, 2), draw(8, 2, 3, 2)
    results = []
    for fn in ("ours", "op", "autograd"):
        x, v0, decay, th = tensors
        if fn == "ours":
            out = lif(x, v0, **{**a.to_dict(), "decay": decay, "v_threshold": th})
        elif fn == "op":
            out = torch.ops.ttsnn.lif(x, v0, decay, th, **a.to_dict())
        else:
            out = autograd_lif(x, v0, a, decay, th)
        results.append((out, torch.autograd.grad(out, tensors, (gs, gv))))
    (s, v), grads = results[2]
    assert 0 < s.mean() < 1
    assert all(g.abs().sum() > 0 for g in grads)
    for (s1, v1), got in results[:2]:
        assert torch.equal(s1, s)
        torch.testing.assert_close(v1, v, rtol=1e-12, atol=1e-12)
        for g1, g in zip(got, grads, strict=True):
            torch.testing.assert_close(g1, g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SURROGATES)
def test_each_surrogate(name) -> None:
    a = LifAttrs(surrogate=name, surrogate_width=0.6, detach_reset=False)
    x = draw(9, 3, 2, 4).requires_grad_()
    zero = torch.zeros(2, 4, dtype=torch.float64)
    got = torch.autograd.grad(lif(x, **a.to_dict())[0].sum(), x)[0]
    expected = torch.autograd.grad(autograd_lif(x, zero, a)[0].sum(), x)[0]
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_one_unused_output_and_no_state_gradient() -> None:
    x = draw(1, 3, 2, 4).requires_grad_()
    module = LIF(return_state=True)
    zero = torch.zeros(2, 4, dtype=torch.float64)
    got = torch.autograd.grad(module(x)[1].sum(), x)[0]
    expected = torch.autograd.grad(autograd_lif(x, zero, module.attrs)[1].sum(), x)[0]
    torch.testing.assert_close(got, expected)


def test_spikingjelly_and_snntorch_names() -> None:
    x, v0 = draw(10, 6, 2, 3) * 2, np.zeros((2, 3))

    def spikes(module):
        return module(x).numpy()

    v, expected = np.zeros((2, 3)), []
    for step in x.numpy():  # SpikingJelly, soft reset
        h = v + (step - v) / 3.0
        s = (h - 0.7 >= 0).astype(float)
        v = h - s * 0.7
        expected.append(s)
    np.testing.assert_array_equal(
        spikes(LIF(tau=3.0, v_threshold=0.7, v_reset=None)), np.stack(expected)
    )
    v, expected = np.zeros((2, 3)), []
    for step in x.numpy():  # snnTorch, subtract
        r = (v - 0.6 > 0).astype(float)
        v = 0.9 * v + step - r * 0.6
        expected.append((v - 0.6 > 0).astype(float))
    np.testing.assert_array_equal(spikes(LIF(beta=0.9, threshold=0.6)), np.stack(expected))
    assert np.stack(expected).mean() > 0
    a = LIF(beta=0.9, reset_mechanism="zero").attrs
    np.testing.assert_array_equal(
        spikes(LIF(beta=0.9, reset_mechanism="zero")), numpy_lif(x.numpy(), v0, a)[0]
    )
    assert LIF(tau=2.0, decay_input=False).attrs.form == "euler_raw_input"
    assert LIF(beta=1.5).attrs.decay == 1.0


def test_learnable_settings_train() -> None:
    x = draw(11, 4, 2, 3)
    module = LIF(tau=3.0, learn_decay=True, learn_threshold=True, return_state=True).double()
    assert {n for n, _ in module.named_parameters()} == {"decay", "v_threshold"}
    for got, expected in zip(module(x), LIF(tau=3.0, return_state=True)(x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    module(x)[0].sum().backward()
    assert module.decay.grad.abs() > 0
    assert module.v_threshold.grad.abs() > 0
    vector = LIF(decay=torch.tensor([0.1, 0.5, 0.9])).double()
    assert "decay" in dict(vector.named_buffers())
    expected = numpy_lif(x.numpy(), np.zeros((2, 3)), LIF().attrs, vector.decay.numpy())[0]
    np.testing.assert_array_equal(vector(x).numpy(), expected)


def test_state_continues_where_it_stopped() -> None:
    x = draw(12, 6, 2, 3)
    module = LIF(beta=0.9, threshold=0.4, return_state=True)
    whole, last = module(x)
    first, v = module(x[:2])
    second, v = module(x[2:], v)
    assert torch.equal(torch.cat([first, second]), whole)
    assert torch.equal(v, last)
    assert torch.equal(module(x)[0], whole), "a call left state behind"
    rebuilt = LIF.from_attrs(module.attrs, return_state=True)
    assert torch.equal(rebuilt(x)[0], whole)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_export_keeps_one_node(dynamic, dtype) -> None:
    module = LIF(tau=2.0, learn_decay=True, return_state=True).to(dtype).eval()
    x = draw(13, 3, 2, 5).to(dtype)
    shapes = ({1: torch.export.Dim("n")},) if dynamic else None
    program = torch.export.export(module, (x,), dynamic_shapes=shapes).run_decompositions()
    nodes = [n for n in program.graph.nodes if n.target is torch.ops.ttsnn.lif.default]
    assert len(nodes) == 1
    assert LifAttrs.from_dict(nodes[0].kwargs) == module.attrs
    for a, b in zip(program.module()(x), module(x), strict=True):
        assert torch.equal(a, b)
    if dynamic:
        wide = draw(14, 3, 7, 5).to(dtype)
        assert torch.equal(program.module()(wide)[0], module(wide)[0])


def test_operator_is_registered_soundly() -> None:
    x, v0 = draw(15, 3, 2, 4).requires_grad_(), draw(16, 2, 4).requires_grad_()
    torch.library.opcheck(
        torch.ops.ttsnn.lif.default, (x, v0, None, None), LifAttrs().to_dict(), test_utils=CHECKS
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: lif(torch.zeros(3)), "T, N"),
        (lambda: lif(torch.zeros(2, 3, dtype=torch.int64)), "floating"),
        (lambda: lif(torch.zeros(2, 3, 4), torch.zeros(3, 5)), r"\[3, 5\]"),
        (lambda: lif(torch.zeros(2, 3, 4), decay=torch.zeros(3)), "broadcast"),
        (lambda: lif(torch.zeros(2, 3), colour=1), "colour"),
        (lambda: LIF(tau=2.0, beta=0.5), "one of"),
        (lambda: LIF(tau=0.9, learn_decay=True), "above 1"),
        (lambda: LIF(beta=0.5, reset_mechanism="never"), "never"),
        (lambda: LIF(v_threshold=1.0, threshold=1.0), "the same"),
        (lambda: LIF(surrogate="cosine"), "cosine"),
    ],
)
def test_bad_input_is_named(call, words) -> None:
    with pytest.raises(TTSNNError, match=words) as info:
        call()
    assert isinstance(info.value, (ModelImportError, TTSNNError))
