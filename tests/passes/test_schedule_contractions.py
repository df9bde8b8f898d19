"""ScheduleContractions: which form is chosen, forcing one, linear layers, numbers."""

import numpy as np
import pytest

from ttsnn.errors import PassError
from ttsnn.ops import tt_conv2d, tt_conv_attrs_of, tt_linear
from ttsnn.passes import ScheduleContractions
from ttsnn.passes.cpu.cost import CpuCost
from ttsnn.program import params_of
from ttsnn.tt import reconstruct_linear

from .graph_tools import op_names, run
from .tt_programs import program

RNG = np.random.default_rng(0)


def conv(mode, channels, rank, steps=2):
    """One TT convolution as a program."""
    sizes = ((rank, channels), (rank, rank, 3), (rank, rank, 3), (channels, rank))
    params = {f"net.conv.g{i + 1}": RNG.normal(size=s) for i, s in enumerate(sizes)}

    def body(bb, x, w):
        options = {"timesteps": 1} if mode == "htt" else {}
        return bb.emit(tt_conv2d(x, *w.values(), mode=mode, padding=1, **options))

    return program((steps, 1, channels, 4, 4), params, body)


def form_of(mod):
    """The form that the only TT convolution carries."""
    calls = [b.value for block in mod["main"].body.blocks for b in block.bindings]
    return tt_conv_attrs_of(calls[0]).form


@pytest.mark.parametrize(
    ("mode", "channels", "rank", "form"),
    [
        # low rank: the chain has the fewest multiply-accumulates
        ("stt", 64, 16, "stt=g1|g2|g3|g4"),
        ("ptt", 64, 16, "ptt=g1|cross|g4"),
        ("htt", 64, 16, "ptt=g1|cross|g4;half=g1|g4"),
        # full rank: the cores have as many as the dense weight, and more stages
        ("stt", 16, 16, "stt=g1*g2|g3*g4"),
        ("ptt", 16, 16, "ptt=g1*cross*g4"),
        ("htt", 16, 16, "ptt=g1*cross*g4;half=g1*g4"),
    ],
)
def test_the_cheapest_form_wins(mode: str, channels: int, rank: int, form: str) -> None:
    mod = conv(mode, channels, rank)
    after = ScheduleContractions(CpuCost(lanes=8))(mod)
    assert form_of(after) == form
    x = RNG.normal(size=(2, 1, channels, 4, 4))
    np.testing.assert_array_equal(run(after, x)[0], run(mod, x)[0])


def test_a_form_can_be_forced() -> None:
    mod = conv("htt", 4, 2)
    cost = CpuCost()
    assert form_of(ScheduleContractions(cost, "dense")(mod)) == "ptt=g1*cross*g4;half=g1*g4"
    one = ScheduleContractions(cost, {"net.conv": "ptt=g1*cross|g4;half=chain"})(mod)
    assert form_of(one) == "ptt=g1*cross|g4;half=g1|g4"
    other = ScheduleContractions(cost, {"elsewhere": "dense"})(mod)
    assert form_of(other) == form_of(ScheduleContractions(cost)(mod))
    with pytest.raises(PassError, match="no form 'sideways'"):
        ScheduleContractions(cost, "sideways")(mod)


@pytest.mark.parametrize(("rank", "dense"), [(1, False), (16, True)])
def test_linear_is_merged_where_that_is_cheaper(rank: int, dense: bool) -> None:
    params = {
        "fc.cores.0": RNG.normal(size=(1, 32, 32, rank)),
        "fc.cores.1": RNG.normal(size=(rank, 16, 16, 1)),
    }
    mod = program((2, 512), params, lambda bb, x, w: bb.emit(tt_linear(x, *w.values())))
    after = ScheduleContractions(CpuCost())(mod)
    assert op_names(after) == (["matmul"] if dense else ["tt.linear"])
    x = RNG.normal(size=(2, 512))
    want = x @ reconstruct_linear(list(params.values())).T
    np.testing.assert_allclose(run(after, x)[0], want, rtol=1e-11, atol=1e-11)
    forced = ScheduleContractions(CpuCost(), "chain" if dense else "dense")(mod)
    assert op_names(forced) == (["tt.linear"] if dense else ["matmul"])


def test_other_layers_are_left_alone() -> None:
    from tvm import relax

    params = {"fc.weight": RNG.normal(size=(4, 3))}
    mod = program((2, 4), params, lambda bb, x, w: bb.emit(relax.op.matmul(x, w["fc.weight"])))
    after = ScheduleContractions(CpuCost())(mod)
    assert op_names(after) == ["matmul"]
    assert list(params_of(after)) == ["fc.weight"]
