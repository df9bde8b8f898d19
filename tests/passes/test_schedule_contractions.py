"""ScheduleContractions: which form is chosen, forcing one, linear layers, numbers."""

import numpy as np
import pytest

from ttsnn.errors import PassError
from ttsnn.ops import tt_conv2d, tt_conv_attrs_of, tt_linear
from ttsnn.passes import ScheduleContractions
from ttsnn.passes.cpu.cost import CpuCost
from ttsnn.passes.linear_chain import linear_forms
from ttsnn.passes.schedule_contractions import _Chooser
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


def tt_linear_program(lead, outs, ins, ranks, after=None, **scales):
    """One TT linear layer with random cores as a program, and its dense weight."""
    edges = (1, *ranks, 1)
    shapes = [(a, m, n, b) for a, m, n, b in zip(edges, outs, ins, edges[1:])]
    cores = {f"fc.cores.{i}": RNG.normal(size=s) for i, s in enumerate(shapes)}

    def body(bb, x, w):
        y = bb.emit(tt_linear(x, *(w[name] for name in cores)))
        return y if after is None else after(bb, y, w)

    mod = program((*lead, int(np.prod(ins))), cores | scales, body)
    return mod, reconstruct_linear(list(cores.values()))


FORMS = ("chain", "0|1|2", "0*1|2", "0|1*2", "dense", None)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lead", [(1,), (3, 2), ("n",)])
def test_linear_in_every_form(form: str | None, lead: tuple) -> None:
    mod, weight = tt_linear_program(lead, (2, 5, 3), (3, 1, 4), (2, 3))
    after = ScheduleContractions(CpuCost(), form)(mod)
    products = {"chain": 3, "0|1|2": 3, "0*1|2": 2, "0|1*2": 2, "dense": 1, None: 1}[form]
    assert op_names(after).count("matmul") == products
    assert "tt.linear" not in op_names(after)
    x = RNG.normal(size=(*(4 if s == "n" else s for s in lead), 12))
    np.testing.assert_allclose(run(after, x)[0], x @ weight.T, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("rows", "size", "rank", "products"),
    [
        (4, 16, 4, 1),  # small: calls cost more than arithmetic
        (4, 64, 4, 2),  # 16 million weights
        (256, 16, 256, 1),  # cores larger than the weight
        (2048, 16, 1, 2),  # many rows: arithmetic counts
    ],
)
def test_linear_is_merged_where_that_is_cheaper(rows, size, rank, products) -> None:
    cost = CpuCost()
    cores = [np.zeros((1, size, size, rank)), np.zeros((rank, size, size, 1))]
    chooser = _Chooser(program((1, 1), {}, lambda bb, x, w: x), cost, None)
    forms = linear_forms(2)
    best = min(forms, key=lambda f: chooser._linear_cost(cores, f, rows))
    assert len(best) == products


def test_a_merged_weight_takes_the_scale_after_it() -> None:
    from tvm import relax

    scale = RNG.normal(size=6)

    def scaled(bb, y, w):
        return bb.emit(relax.op.multiply(y, w["bn.scale"]))

    mod, weight = tt_linear_program((2, 3), (2, 3), (4, 2), (2,), scaled, **{"bn.scale": scale})
    x = RNG.normal(size=(2, 3, 8))
    for form, names in (("dense", ["matmul"]), ("chain", None)):
        after = ScheduleContractions(CpuCost(), form)(mod)
        assert names is None or op_names(after) == names
        np.testing.assert_allclose(run(after, x)[0], x @ weight.T * scale, rtol=1e-11, atol=1e-11)


def test_unknown_forms_of_linear_layers_are_refused() -> None:
    mod, _ = tt_linear_program((1,), (2, 2), (2, 2), (2,))
    with pytest.raises(PassError, match=r"fc: tt\.linear with 2 cores .* not '0\|2'"):
        ScheduleContractions(CpuCost(), "0|2")(mod)


def test_other_layers_are_left_alone() -> None:
    from tvm import relax

    params = {"fc.weight": RNG.normal(size=(4, 3))}
    mod = program((2, 4), params, lambda bb, x, w: bb.emit(relax.op.matmul(x, w["fc.weight"])))
    after = ScheduleContractions(CpuCost())(mod)
    assert op_names(after) == ["matmul"]
    assert list(params_of(after)) == ["fc.weight"]
