"""Fresh cores' variance, and EVBMF's rank of synthetic matrices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ttsnn.tt import evbmf_rank, fresh_conv, fresh_linear, reconstruct_conv, reconstruct_linear


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_fresh_chain_has_the_variance_of_a_kaiming_layer(mode):
    shape, ranks = (16, 24, 3, 3), (12, 12, 12)
    dense = torch.empty(200, *shape[1:], dtype=torch.float64)
    torch.nn.init.kaiming_normal_(dense, generator=torch.Generator().manual_seed(0))
    expected = dense.var().item() * 24 * 9
    for full in (True, False) if mode == "htt" else (True,):
        sums = [
            (reconstruct_conv(fresh_conv(shape, mode, ranks, seed=s), mode, full=full) ** 2)
            .sum(axis=(1, 2, 3))
            .mean()
            for s in range(300)
        ]
        # Σ of squared weights of an output channel = output variance for unit inputs
        assert np.mean(sums) == pytest.approx(expected, rel=0.05)


def test_fresh_outputs_have_that_variance_on_real_inputs():
    x = torch.randn(8, 24, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    variances = []
    for seed in range(20):
        w = reconstruct_conv(fresh_conv((32, 24, 3, 3), "ptt", 16, seed=seed), "ptt")
        variances.append(F.conv2d(x, torch.tensor(w)).var().item())
    assert np.mean(variances) == pytest.approx(2.0, rel=0.15)


def test_fresh_linear_has_the_variance_of_a_kaiming_layer():
    sums = [
        (reconstruct_linear(fresh_linear((24, 60), (4, 6), (6, 10), 8, seed=s, gain=1.0)) ** 2)
        .sum(axis=1)
        .mean()
        for s in range(200)
    ]
    assert np.mean(sums) == pytest.approx(1.0, rel=0.08)


def test_fresh_cores_follow_the_seed():
    a, b, c = (fresh_conv((4, 4, 3, 3), "stt", 2, seed=s) for s in (1, 1, 2))
    assert all(np.array_equal(x, y) for x, y in zip(a, b))
    assert not np.array_equal(a.g1, c.g1)


@pytest.mark.parametrize("shape", [(40, 120), (120, 40), (60, 60)])
@pytest.mark.parametrize("rank", [1, 6, 15])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.3])
def test_rank_of_low_rank_plus_noise(shape, rank, noise):
    rng = np.random.default_rng(rank)
    signal = rng.normal(size=(shape[0], rank)) @ rng.normal(size=(rank, shape[1]))
    assert evbmf_rank(signal + noise * rng.normal(size=shape)) == rank


@pytest.mark.parametrize("shape", [(30, 90), (64, 576), (50, 50)])
def test_noise_alone_has_rank_zero(shape):
    a = np.random.default_rng(0).normal(size=shape)
    assert evbmf_rank(a) == 0
    assert evbmf_rank(1e-6 * a) == 0
    assert evbmf_rank(np.zeros(shape)) == 0


def test_threshold_is_the_papers():
    """With a known noise variance the threshold is σ·√(M·x̲), τ̲ ≈ 2.5129·√α."""
    rows, cols, sigma = 40, 160, 0.1
    tau = 2.5129 * np.sqrt(rows / cols)
    threshold = sigma * np.sqrt(cols * (1 + tau) * (1 + rows / cols / tau))
    rng = np.random.default_rng(1)
    u, v = (
        np.linalg.qr(rng.normal(size=(rows, rows)))[0],
        np.linalg.qr(rng.normal(size=(cols, rows)))[0],
    )
    gamma = np.full(rows, 1e-3)
    gamma[:3] = threshold * 1.02
    gamma[3:5] = threshold * 0.98
    assert evbmf_rank(u * gamma @ v.T, noise_variance=sigma**2) == 3
