"""Forms of TT convolutions against PyTorch's convolution with the reconstructed weight."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ttsnn.errors import PassError
from ttsnn.ops import TTConvAttrs
from ttsnn.passes.contraction import (
    chain_of,
    contract,
    contraction_graph,
    form_text,
    forms_of,
    merge,
    parse_form,
    stage_macs,
)
from ttsnn.passes.layers.config import Stage
from ttsnn.tt import ConvCores, reconstruct_conv

RNG = np.random.default_rng(0)


def apply(stages, x):
    """Tap convolutions on one image [H, W, C], by their definition."""
    for stage, weight in stages:
        y = np.zeros((*stage.out_size, stage.out_channels))
        for i, j in np.ndindex(*stage.out_size):
            for (a, b), w in zip(stage.taps, weight):
                p, q = i * stage.strides[0] + a, j * stage.strides[1] + b
                if 0 <= p < stage.in_size[0] and 0 <= q < stage.in_size[1]:
                    y[i, j] += x[p, q] @ w
        x = y
    return x


@pytest.mark.parametrize("kind", ["stt", "ptt", "half"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 2, 1, 0)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
def test_every_form_is_the_dense_convolution(kind, strides, padding, dilation) -> None:
    cores = ConvCores(*(RNG.normal(size=s) for s in ((3, 4), (3, 3, 3), (3, 3, 3), (5, 3))))
    weight = reconstruct_conv(cores, "stt" if kind == "stt" else "htt", full=kind != "half")
    x = RNG.normal(size=(4, 7, 6))
    top, left, bottom, right = padding
    padded = F.pad(torch.tensor(x), (left, right, top, bottom))[None]
    want = F.conv2d(padded, torch.tensor(weight), stride=strides, dilation=dilation)
    want = want[0].permute(1, 2, 0).numpy()
    attrs = TTConvAttrs("stt", -1, strides, padding, dilation)
    chain = chain_of(kind, attrs, list(cores), (7, 6))
    for form in forms_of(kind):
        got = apply(contract(chain, form), x.transpose(1, 2, 0))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12, err_msg=form_text(form))


def test_cross_has_five_taps_and_the_graph_its_cost() -> None:
    cores = [RNG.normal(size=s) for s in ((2, 4), (2, 2, 3), (2, 2, 3), (5, 2))]
    chain = chain_of("ptt", TTConvAttrs("ptt", -1, (1, 1), (1, 1, 1, 1)), cores, (4, 3))
    graph = contraction_graph(chain, parse_form("chain", "ptt"))
    assert list(graph.edges) == [("g1", "cross"), ("cross", "g4")]
    assert {n: graph.nodes[n]["macs"] for n in graph} == {
        "g1": 12 * 4 * 2,
        "cross": 12 * 5 * 2 * 2,
        "g4": 12 * 2 * 5,
    }
    dense = contract(chain, parse_form("dense", "ptt"))
    assert [stage_macs(s) for s, _ in dense] == [12 * 5 * 4 * 5]


def test_forms_are_named_both_ways() -> None:
    assert len(forms_of("stt")) == 8
    for form in forms_of("stt"):
        assert parse_form(form_text(form), "stt") == form
    assert form_text(parse_form("dense", "ptt")) == "g1*cross*g4"
    with pytest.raises(PassError, match="g1\\|g2"):
        parse_form("g1|g3", "stt")


def test_padding_between_two_stages_is_not_merged_away() -> None:
    taps = tuple((i - 1, j - 1) for i in range(3) for j in range(3))
    stage = Stage(taps, (4, 4), (4, 4), 2, 2), RNG.normal(size=(9, 2, 2))
    with pytest.raises(PassError, match="padding"):
        merge(stage, stage)
