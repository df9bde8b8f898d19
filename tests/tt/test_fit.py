"""Fitted cores against NumPy, PyTorch's convolution, SciPy and TensorLy."""

import itertools
import time

import numpy as np
import pytest
import tensorly
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import tensor_train

from ttsnn.errors import PlanError
from ttsnn.tt import (
    clip_conv_ranks,
    clip_linear_ranks,
    conv_errors,
    cross_part,
    cross_slices,
    factorize_sizes,
    fit_conv,
    fit_cross,
    fit_linear,
    reconstruct_conv,
    reconstruct_linear,
    relative_error,
    tt_svd,
)

FULL = 10**9


def norm(a):
    return np.sqrt((np.asarray(a, dtype=np.float64) ** 2).sum())


def by_hand(g1, g2, g3, g4, mode):
    """The weight tap by tap, without einsum."""
    kh, kw = g2.shape[2], g3.shape[2]
    w = np.zeros((g4.shape[0], g1.shape[1], kh, kw))
    for y in range(kh):
        for x in range(kw):
            if mode == "stt":
                w[:, :, y, x] = g4 @ g3[:, :, x] @ g2[:, :, y] @ g1
            else:
                middle = np.zeros((g4.shape[1], g1.shape[0]))
                if x == kw // 2:
                    middle += 0.5 * g2[:, :, y]
                if y == kh // 2:
                    middle += 0.5 * g3[:, :, x]
                w[:, :, y, x] = g4 @ middle @ g1
    return w


conv_shapes = st.tuples(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3, 5]),
    st.sampled_from([1, 3, 5]),
).filter(lambda s: s[2:] != (1, 1))


@settings(max_examples=30, deadline=None)
@given(shape=conv_shapes, seed=st.integers(0, 99))
def test_full_rank_reproduces_the_weight_or_its_cross(shape, seed):
    w = np.random.default_rng(seed).normal(size=shape)
    for mode, target in (("stt", w), ("ptt", cross_part(w))):
        cores = fit_conv(w, mode, clip_conv_ranks(shape, mode, FULL))
        assert norm(reconstruct_conv(cores, mode) - target) <= 1e-10 * norm(w)
        assert np.allclose(reconstruct_conv(cores, mode), by_hand(*cores, mode), atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(shape=conv_shapes, rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_stt_is_no_worse_than_tensorly(shape, rank, seed):
    w = np.random.default_rng(seed).normal(size=shape)
    r1, r2, r3 = clip_conv_ranks(shape, "stt", rank)
    theirs = tensorly.tt_to_tensor(
        tensor_train(tensorly.tensor(w.transpose(1, 2, 3, 0)), [1, r1, r2, r3, 1])
    )
    ours = reconstruct_conv(fit_conv(w, "stt", (r1, r2, r3)), "stt")
    assert norm(w - ours) <= norm(w - theirs.transpose(3, 0, 1, 2)) * (1 + 1e-9) + 1e-12 * norm(w)


def test_tt_svd_stays_below_the_bound_of_the_discarded_singular_values():
    tensor = np.random.default_rng(3).normal(size=(5, 4, 6, 3))
    ranks = (3, 7, 2)
    left, middle, right = (
        np.linalg.svd(tensor.reshape(rows, -1), compute_uv=False) for rows in (5, 20, 120)
    )
    bound = np.sqrt((left[3:] ** 2).sum() + (middle[7:] ** 2).sum() + (right[2:] ** 2).sum())
    approximation = tt_svd(tensor, ranks)[0]
    for core in tt_svd(tensor, ranks)[1:]:
        approximation = np.tensordot(approximation, core, axes=1)
    assert 0 < norm(tensor - approximation.reshape(tensor.shape)) <= bound


@pytest.mark.parametrize(("cout", "cin", "kh", "kw"), [(8, 12, 3, 3), (9, 5, 5, 3), (6, 7, 1, 3)])
def test_ptt_refinement_lowers_the_error_monotonically(cout, cin, kh, kw):
    w = np.random.default_rng(5).normal(size=(cout, cin, kh, kw))
    r = min(cout, cin) // 2
    slices = cross_slices(w)
    errors = []
    for iterations in range(12):
        fit = fit_cross(slices, r, r, tolerance=0.0, max_iterations=iterations)
        approximation = np.einsum("or,prs,is->poi", fit.left, fit.core, fit.right)
        errors.append(norm(slices - approximation) / norm(slices))
        assert len(fit.history) == iterations + 1
        assert fit.history[-1] == pytest.approx(errors[-1], abs=1e-9)
    assert all(b <= a for a, b in itertools.pairwise(errors))
    assert errors[-1] < errors[0] * 0.999


def test_ptt_fit_is_stationary():
    """At the optimum no small change of the bases lowers the error."""
    rng = np.random.default_rng(0)
    slices = cross_slices(rng.normal(size=(7, 6, 3, 3)))
    fit = fit_cross(slices, 3, 4, tolerance=0.0, max_iterations=2000)

    def error(left, right):
        left, right = np.linalg.qr(left)[0], np.linalg.qr(right)[0]
        core = np.matmul(left.T, np.matmul(slices, right))
        return norm(slices - np.matmul(left, np.matmul(core, right.T)))

    best = error(fit.left, fit.right)
    for _ in range(50):
        left = fit.left + 1e-3 * rng.normal(size=fit.left.shape)
        right = fit.right + 1e-3 * rng.normal(size=fit.right.shape)
        assert error(left, right) >= best


def test_ptt_finds_a_weight_of_its_own_form():
    rng = np.random.default_rng(1)
    g1, g4 = rng.normal(size=(3, 10)), rng.normal(size=(11, 3))
    g2, g3 = rng.normal(size=(3, 3, 3)), rng.normal(size=(3, 3, 3))
    w = by_hand(g1, g2, g3, g4, "ptt")
    errors = conv_errors(w, fit_conv(w, "ptt", 3), "ptt")
    assert errors.weight < 1e-10
    assert errors.cross < 1e-10


def test_errors_are_those_of_numpy():
    w = np.random.default_rng(2).normal(size=(6, 5, 3, 3))
    cores = fit_conv(w, "htt", 3, timesteps=1, T=3)
    errors = conv_errors(w, cores, "htt")
    full = by_hand(*cores, "htt")
    cross = w.copy()
    cross[:, :, ::2, ::2] = 0
    half = w.copy()
    half[:, :, 1, 1] -= cores.g4 @ cores.g1
    assert errors.weight == pytest.approx(norm(w - full) / norm(w))
    assert errors.cross == pytest.approx(norm(cross - full) / norm(cross))
    assert errors.half == pytest.approx(norm(half) / norm(w))
    assert relative_error(np.zeros(3), np.zeros(3)) == 0.0
    assert relative_error(np.zeros(3), np.ones(3)) == np.inf


def test_htt_minimises_the_sum_over_timesteps():
    """No optimiser that starts from the fit finds anything better."""
    rng = np.random.default_rng(4)
    w = torch.tensor(rng.normal(size=(5, 6, 3, 3)))
    T, full = 4, 1
    cores = fit_conv(w.numpy(), "htt", 3, timesteps=full, T=T, tolerance=0.0, max_iterations=3000)
    parts = [torch.tensor(g, requires_grad=True) for g in cores]

    def objective():
        g1, g2, g3, g4 = parts
        dense = torch.zeros_like(w)
        dense[:, :, :, 1] += 0.5 * torch.einsum("ob,bay,ai->oiy", g4, g2, g1)
        dense[:, :, 1, :] += 0.5 * torch.einsum("ob,bax,ai->oix", g4, g3, g1)
        point = torch.zeros_like(w)
        point[:, :, 1, 1] = g4 @ g1
        return full * ((w - dense) ** 2).sum() + (T - full) * ((w - point) ** 2).sum()

    start = objective().item()
    optimizer = torch.optim.LBFGS(parts, max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective().item() >= start * (1 - 1e-6)


def test_htt_at_full_rank_reproduces_cross_and_centre():
    w = np.random.default_rng(6).normal(size=(6, 6, 3, 3))
    cores = fit_conv(w, "htt", 6, timesteps=2, T=4)
    centre = np.zeros_like(w)
    centre[:, :, 1, 1] = w[:, :, 1, 1]
    assert norm(reconstruct_conv(cores, "htt") - cross_part(w)) <= 1e-10 * norm(w)
    assert norm(reconstruct_conv(cores, "htt", full=False) - centre) <= 1e-10 * norm(w)


def test_htt_survives_a_centre_tap_without_rank():
    w = np.random.default_rng(7).normal(size=(6, 6, 3, 3))
    w[:, :, 1, 1] = 0
    cores = fit_conv(w, "htt", 6, timesteps=2, T=4)
    assert all(np.isfinite(g).all() for g in cores)
    assert norm(reconstruct_conv(cores, "htt") - cross_part(w)) <= 1e-9 * norm(w)


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_zero_weights_have_finite_cores(mode):
    cores = fit_conv(np.zeros((4, 5, 3, 3)), mode, 3, timesteps=1, T=2)
    assert all(np.isfinite(g).all() for g in cores)
    assert not reconstruct_conv(cores, mode).any()


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_fit_is_deterministic_and_ignores_the_weights_dtype(mode):
    w = np.random.default_rng(8).normal(size=(16, 12, 3, 3)).astype(np.float32)
    first = fit_conv(w, mode, 5)
    again = fit_conv(np.asfortranarray(w.astype(np.float64)), mode, 5)
    for a, b in zip(first, again):
        assert a.dtype == np.float64
        assert np.array_equal(a, b)


@pytest.mark.parametrize("stride", [1, 2])
def test_chain_of_convolutions_equals_the_reconstructed_weight(stride):
    """Cores run as four convolutions in PyTorch equal one with the dense weight."""
    w = np.random.default_rng(9).normal(size=(6, 4, 3, 3))
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    for mode in ("stt", "ptt"):
        cores = fit_conv(w, mode, 3)
        g1, g2, g3, g4 = (torch.tensor(g) for g in cores)
        h = F.conv2d(x, g1[:, :, None, None])
        if mode == "stt":
            h = F.conv2d(h, g2[:, :, :, None], padding=(1, 0), stride=(stride, 1))
            h = F.conv2d(h, g3[:, :, None, :], padding=(0, 1), stride=(1, stride))
        else:
            column = F.conv2d(h, g2[:, :, :, None], padding=(1, 0), stride=stride)
            row = F.conv2d(h, g3[:, :, None, :], padding=(0, 1), stride=stride)
            h = 0.5 * (column + row)
        chain = F.conv2d(h, g4[:, :, None, None])
        dense = torch.tensor(reconstruct_conv(cores, mode))
        assert torch.allclose(chain, F.conv2d(x, dense, padding=1, stride=stride), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    m=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    n=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_tt_matrix_at_full_rank_reproduces_the_weight(m, n, seed):
    n = n[: len(m)]
    w = np.random.default_rng(seed).normal(size=(np.prod(m), np.prod(n)))
    cores = fit_linear(w, m, n, clip_linear_ranks(m, n, FULL))
    assert [c.shape[1:3] for c in cores] == list(zip(m, n))
    assert norm(reconstruct_linear(cores) - w) <= 1e-10 * norm(w)


def test_tt_matrix_entry_is_the_product_of_core_slices():
    rng = np.random.default_rng(0)
    cores = [rng.normal(size=s) for s in ((1, 2, 3, 4), (4, 3, 2, 5), (5, 2, 2, 1))]
    w = reconstruct_linear(cores)
    assert w.shape == (12, 12)
    for m, n in ((0, 0), (7, 5), (11, 11)):
        (m1, m2, m3), (n1, n2, n3) = np.unravel_index(m, (2, 3, 2)), np.unravel_index(n, (3, 2, 2))
        product = cores[0][:, m1, n1] @ cores[1][:, m2, n2] @ cores[2][:, m3, n3]
        assert w[m, n] == pytest.approx(product.item())


def test_tt_matrix_is_no_worse_than_tensorly():
    w = np.random.default_rng(1).normal(size=(12, 30))
    tensor = w.reshape(3, 4, 5, 6).transpose(0, 2, 1, 3)
    theirs = tensorly.tt_to_tensor(tensor_train(tensorly.tensor(tensor.reshape(15, 24)), [1, 6, 1]))
    ours = reconstruct_linear(fit_linear(w, (3, 4), (5, 6), 6))
    assert norm(w - ours) <= norm(tensor.reshape(15, 24) - theirs) * (1 + 1e-9)


def test_large_layer_is_fitted_quickly():
    w = np.random.default_rng(2).normal(size=(256, 256, 3, 3))
    start = time.perf_counter()
    fit_conv(w, "ptt", 64)
    assert time.perf_counter() - start < 5  # about 0.1 s on an idle core


@pytest.mark.parametrize(
    ("shape", "mode", "ranks", "message"),
    [
        ((4, 4, 2, 2), "stt", 2, "even kernel"),
        ((4, 4, 1, 1), "ptt", 2, "1×1 kernel.*leave this layer dense"),
        ((4, 4, 3, 3), "ptt", 5, r"use \[4, 4, 4\]"),
        ((4, 4, 3, 3), "htt", (2, 3, 3), r"use \[2, 2, 2\]"),
        ((4, 4, 3, 3), "tucker", 2, "stt, ptt, htt"),
        ((4, 4, 3, 3), "stt", (2, 2), "three ranks"),
        ((4, 4, 3, 3), "stt", 0, "at least 1"),
        ((4, 4), "stt", 1, r"\[Cout, Cin, Kh, Kw\]"),
    ],
)
def test_what_does_not_fit_is_refused(shape, mode, ranks, message):
    with pytest.raises(PlanError, match=message):
        fit_conv(np.ones(shape), mode, ranks)


def test_values_that_are_not_finite_are_refused():
    w = np.ones((3, 3, 3, 3))
    w[0, 0, 0, 0] = np.nan
    with pytest.raises(PlanError, match="not finite"):
        fit_conv(w, "ptt", 2)
    with pytest.raises(PlanError, match="not finite"):
        fit_linear(w.reshape(9, 9), (3, 3), (3, 3), 2)


def test_factors():
    assert factorize_sizes(512, 3) == (8, 8, 8)
    assert factorize_sizes(101, 2) == (1, 101)
    assert factorize_sizes(360, 2) == (18, 20)
    with pytest.raises(PlanError, match="do not multiply"):
        fit_linear(np.ones((6, 6)), (2, 2), (2, 3), 1)


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 600), count=st.integers(1, 4))
def test_factors_multiply_to_the_size(size, count):
    factors = factorize_sizes(size, count)
    assert len(factors) == count
    assert np.prod(factors) == size
    assert list(factors) == sorted(factors)
