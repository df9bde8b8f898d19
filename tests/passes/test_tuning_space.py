"""What the tuner may choose for a layer: every choice is a kernel, and computes the layer."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import tvm
from tvm.s_tir import Schedule

from ttsnn.errors import PassError
from ttsnn.passes.contraction import contract, parse_form
from ttsnn.passes.cpu.cost import CpuCost
from ttsnn.passes.cpu.event_choice import EventChoice
from ttsnn.passes.cpu.isa import AVX2, AVX512, GENERIC, isa_of
from ttsnn.passes.cpu.kernels.pack import pack_layer_weights, packed_config
from ttsnn.passes.cpu.kernels.tiles import check_tiles, default_tiles
from ttsnn.passes.cpu.tuning import LayerChoice, LayerTask, rates
from ttsnn.passes.cpu.tuning.features import features_of
from ttsnn.passes.cpu.tuning.forms import cheapest_form, form_costs, forms_of_layer
from ttsnn.passes.cpu.tuning.kernel import CHOICE, build_candidate, choice_of
from ttsnn.passes.cpu.tuning.knobs import knobs_of, tiles_of
from ttsnn.passes.cpu.tuning.workload import anonymous, layer_of, measured_params, workload_key

from .cpu_kernels.oracle import (
    COLUMN,
    CROSS,
    POINT,
    ROW,
    SQUARE,
    assert_same,
    chain,
    expected,
    layer,
    random_operands,
)

HASWELL = tvm.target.Target({"kind": "llvm", "mcpu": "haswell"})
TT = (POINT, CROSS, POINT)
PTT = layer(chain((6, 7), (3, 9, 8, 20), TT), dtype="float32")
STT = layer(chain((5, 4), (4, 6, 3, 5, 8), (POINT, COLUMN, ROW, POINT), {1: (2, 1), 2: (1, 2)}))
HTT = layer(
    chain((4, 4), (3, 9, 8, 12), TT),
    T=4,
    half=chain((4, 4), (3, 9, 12), (POINT, POINT)),
    timesteps=2,
    residual=True,
    residual_T=4,
)
DENSE = layer(chain((9, 6), (3, 17), (SQUARE,), {0: (2, 2)}), T=2, emit=("spikes", "v_last"))
STATIC = layer(chain((8, 8), (2, 5, 5, 24), TT), x_T=1)
PIXEL = layer(chain((1, 1), (24, 8, 8, 40), TT), v0=True)
ALL = pytest.mark.parametrize(
    "config",
    [PTT, STT, HTT, DENSE, STATIC, PIXEL],
    ids=["ptt", "stt", "htt", "dense", "static", "pixel"],
)


@ALL
@pytest.mark.parametrize("isa", [AVX512, AVX2, GENERIC], ids=lambda i: i.name)
def test_every_combination_of_knobs_fits_the_layer(config, isa):
    rng = random.Random(3)
    for form in forms_of_layer(config).values():
        knobs = knobs_of(form, 2, isa, 1)
        assert all(k.default in k.values and len(set(k.values)) == len(k.values) for k in knobs)
        for _ in range(20):
            tiles = tiles_of(form, 2, isa, 1, {k.name: rng.choice(k.values) for k in knobs})
            check_tiles(packed_config(form, isa, tiles.panel_vectors), tiles)


@ALL
def test_defaults_of_the_knobs_are_the_analytic_tiles(config):
    for form in forms_of_layer(config).values():
        packed = packed_config(form, AVX512)
        want = default_tiles(packed, 2, AVX512, 1)
        assert tiles_of(form, 2, AVX512, 1, {}) == replace(want, panel_vectors=4)


def test_forms_have_the_stages_of_schedule_contractions():
    forms = forms_of_layer(PTT)
    wanted = {"g1|cross|g4", "g1|cross*g4", "g1*cross|g4", "g1*cross*g4"}
    assert set(forms) == {f"ptt={form}" for form in wanted}
    names = ("g1", "cross", "g4")
    weights = [np.zeros((len(s.taps), s.in_channels, s.out_channels)) for s in PTT.stages]
    stages = dict(zip(names, zip(PTT.stages, weights)))
    for text, form in forms.items():
        parsed = parse_form(text.removeprefix("ptt="), "ptt")
        assert form.stages == tuple(s for s, _ in contract(stages, parsed))
    assert list(forms_of_layer(DENSE)) == [""]
    assert "ptt=g1*cross|g4;half=g1*g4" in forms_of_layer(HTT)
    assert len(forms_of_layer(HTT)) == 4 * 2
    assert len(forms_of_layer(STT)) == 8


@ALL
def test_cheapest_form_costs_least(config):
    costs = form_costs(config, CpuCost())
    assert costs[cheapest_form(config, CpuCost())] == min(costs.values())


def _candidate(task, seed, form):
    """A random candidate of a form."""
    (sch,) = (
        s for s, f in zip(task.spaces(Schedule(task.module, seed=seed)), task.forms) if f == form
    )
    task.settle(sch)
    return sch.mod


@pytest.mark.parametrize("config", [PTT, HTT, DENSE, PIXEL], ids=["ptt", "htt", "dense", "pixel"])
def test_candidates_compute_the_layer(config):
    config = anonymous(config)
    task = LayerTask(config, 2, HASWELL, 1)
    forms = [f for f in task.forms if "cross|g4" in f or f == ""][:2]
    for seed, form in enumerate(forms, 5):
        mod = _candidate(task, seed, form)
        choice = choice_of(mod)
        assert choice.form == form
        merged = forms_of_layer(config)[form]
        operands = random_operands(merged, 2)
        want = expected(merged, operands)
        names = [n for n in operands if n.startswith(("w", "half_w"))]
        _, packed = pack_layer_weights(
            merged, [operands[n] for n in names], HASWELL, choice.tiles.panel_vectors
        )
        operands.update(zip(names, packed))
        assert_same(_run(mod, config, operands), want, config.dtype)


def _run(mod, config, operands, rate=None):
    """Results of a candidate for two images; what a form does not read is NaN."""
    params = measured_params(config, 2, isa_of(HASWELL), rate)
    arguments = []
    for name, param in params.operands.items():
        shape, dtype = tuple(int(s) for s in param.shape), str(param.dtype)
        full = np.full(shape, np.nan if dtype == config.dtype else 7, dtype)
        if name in operands:
            value = operands[name]
            if value.ndim == 1:
                full[: value.size] = value
            else:
                full[...] = value
        arguments.append(full)
    outs = [np.zeros([int(s) for s in p.shape], str(p.dtype)) for p in params.results.values()]
    tensors = [tvm.runtime.tensor(a) for a in (*arguments, *outs)]
    build_candidate(mod, HASWELL)["main"](*tensors)
    return {n: t.numpy() for n, t in zip(params.results, tensors[len(arguments) :])}


@pytest.mark.parametrize("config", [PTT, HTT, DENSE], ids=["ptt", "htt", "dense"])
def test_event_driven_candidates_compute_the_layer_for_each_input(config, monkeypatch):
    """The last of several inputs has its results stay; event-driven and dense ones are equal."""
    config = anonymous(replace(config, byte_x=True))
    size = 2 * config.x_T * np.prod([*config.stages[0].in_size, config.stages[0].in_channels])
    monkeypatch.setattr(rates, "MEASURED_SPIKES", 2 * int(size) + 1)
    task = LayerTask(config, 2, HASWELL, 1, rate=0.25)
    form = next(iter(task.forms))
    merged = forms_of_layer(config)[form]
    operands = random_operands(merged, 2)
    names = [n for n in operands if n.startswith(("w", "half_w"))]
    want = expected(merged, operands)
    _, packed = pack_layer_weights(merged, [operands[n] for n in names], HASWELL)
    operands.update(zip(names, packed))
    x = operands["x"]
    operands["x"] = np.stack([1 - x, np.zeros_like(x), x])
    seeds = task.spaces(Schedule(task.module), seed=True)[:2]
    got = []
    for sch in seeds:
        task.settle(sch)
        got.append(_run(sch.mod, config, operands, 0.25))
        assert_same(got[-1], want, config.dtype)
    assert [choice_of(s.mod).tiles.events for s in seeds] == [False, True]
    for name in config.emit:
        np.testing.assert_array_equal(got[0][name], got[1][name])


def test_events_are_a_knob_where_the_rate_is_known():
    config = replace(PTT, byte_x=True)

    def names(*args):
        return {k.name for k in knobs_of(*args, AVX512, 1, 0.1)}

    assert "events" in names(config, 2)
    assert "events" not in names(PTT, 2)
    assert "events" not in {k.name for k in knobs_of(config, 2, AVX512, 1)}
    one = tiles_of(config, 2, AVX512, 1, {"events": 1, "shape0": 3, "outer0": 1, "shape1": 2}, 0.1)
    other = tiles_of(config, 2, AVX512, 1, {"events": 1, "unroll0": 8, "shape1": 2}, 0.1)
    assert one == other  # the first stage has no register tile to choose
    assert one.events
    assert one != tiles_of(config, 2, AVX512, 1, {"events": 1}, 0.1)
    rows = [features_of(config, 2, AVX512, 1, replace(one, events=e), 0.1) for e in (True, False)]
    assert (rows[0] != rows[1]).any()


def test_the_untuned_default_is_the_models():
    """A layer with calibration, but without tuning, is what ``EventChoice`` says."""
    wide = layer(chain((4, 4), (128, 40, 40, 128), TT), dtype="float32", byte_x=True)
    for step in rates.STEPS[::4]:
        task = LayerTask(anonymous(wide), 1, HASWELL, 1, rate=step)
        config = forms_of_layer(task.config)[task.default.form]
        choice = EventChoice({"layer": step}, isa_of(HASWELL), 1)(config, 1)
        assert task.default.tiles.events == (choice is not None and choice.events)
    assert not task.default.tiles.events
    assert LayerTask(anonymous(wide), 1, HASWELL, 1, rate=rates.STEPS[0]).default.tiles.events


def test_rates_are_rounded_up_to_steps():
    drawn = np.random.default_rng(0).random(200)
    steps = [rates.rate_step(r) for r in drawn]
    assert all(r <= s <= max(1.2 * r, rates.STEPS[0]) for r, s in zip(drawn, steps))
    assert [rates.rate_step(s) for s in rates.STEPS] == list(rates.STEPS)
    assert rates.rate_step(0.0) == rates.STEPS[0]
    for rate, step in zip(drawn, steps):
        serving = rates.serving_steps(rate)
        assert serving[0] == step
        assert all(rate <= s <= max(2 * rate, step) for s in serving)
    assert rates.serving_steps(1.0) == (1.0,)


def test_a_workload_says_its_rate_in_its_arguments():
    config = anonymous(replace(PTT, byte_x=True))
    task = LayerTask(config, 2, HASWELL, 3, rate=0.25)
    assert layer_of(task.module) == (config, 2, 3, 0.25)
    assert layer_of(LayerTask(config, 2, HASWELL, 3).module) == (config, 2, 3, None)
    x, ones, *_ = (tuple(int(s) for s in p.shape) for p in task.module["main"].params)
    assert x[1:] == (3, 2, 6, 7, 3)
    assert ones[0] / np.prod(x) == pytest.approx(0.25, abs=1e-6)
    assert np.prod(x) >= rates.MEASURED_SPIKES


def test_seeds_are_the_untuned_defaults():
    task = LayerTask(anonymous(PTT), 2, HASWELL, 1)
    seeds = task.spaces(Schedule(task.module), seed=True)
    for sch in seeds:
        task.settle(sch)
    choices = [choice_of(s.mod) for s in seeds]
    assert task.default in choices
    assert [c.form for c in choices] == list(task.forms)[: len(choices)]
    assert CHOICE in seeds[0].mod["main"].body.block.annotations


def test_a_mutation_changes_one_decision_and_settles():
    task = LayerTask(anonymous(PTT), 2, HASWELL, 1)
    sch = task.spaces(Schedule(task.module), seed=True)[0]
    rng, changed = random.Random(0), 0
    for _ in range(20):
        trace = task.mutate(sch.trace, rng)
        other = Schedule(task.module)
        trace.apply_to_schedule(other, remove_postproc=True)
        before = [int(d) for d in sch.trace.decisions.values()]
        after = [int(d) for d in other.trace.decisions.values()]
        differing = sum(a != b for a, b in zip(before, after, strict=True))
        assert differing <= 1
        changed += differing
        task.settle(other)
        choice_of(other.mod)
    assert changed > 5


def test_features_tell_candidates_apart():
    rng, seen = random.Random(1), set()
    knobs = knobs_of(PTT, 2, AVX512, 1)
    tried = {
        tiles_of(PTT, 2, AVX512, 1, {k.name: rng.choice(k.values) for k in knobs})
        for _ in range(30)
    }
    for tiles in tried:
        row = features_of(PTT, 2, AVX512, 1, tiles)
        assert row.shape[0] == 1
        assert np.isfinite(row).all()
        seen.add(row.tobytes())
    assert len(seen) == len(tried)


def test_names_do_not_matter_but_shapes_do():
    assert workload_key(anonymous(PTT), 2) == workload_key(anonymous(replace(PTT, name="b")), 2)
    assert workload_key(PTT, 2) != workload_key(PTT, 3)
    assert workload_key(PTT, 2) != workload_key(replace(PTT, residual=True), 2)
    assert workload_key(PTT, 2) != workload_key(PTT, 2, 0.25) != workload_key(PTT, 2, 0.5)


def test_choice_round_trips_and_refuses_nonsense():
    choice = LayerChoice("ptt=g1|cross|g4", tiles_of(PTT, 2, AVX2, 1, {}))
    assert LayerChoice.from_json(choice.to_json()) == choice
    for text in ("", "[]", '{"form": 1}', '{"form": "", "tiles": "{\\"strip_rows\\": 1}"}'):
        with pytest.raises(PassError, match=r"no (choice|tiles)"):
            LayerChoice.from_json(text)


def test_weights_must_be_packed_for_the_tiles():
    packed = packed_config(PTT, AVX512, 2)
    tiles = replace(default_tiles(packed, 2, AVX512, 1), panel_vectors=4)
    with pytest.raises(PassError, match="packed in panels of 2"):
        check_tiles(packed, tiles)
