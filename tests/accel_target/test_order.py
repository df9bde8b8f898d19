"""Tokens, halos and cores: what is left out is found."""

from __future__ import annotations

import functools
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.isa import NONE, Op
from ttsnn.accel_target.sim.execute import execute
from ttsnn.accel_target.sim.verify import verify_order
from ttsnn.accel_target.simulate import simulate
from ttsnn.errors import TargetError

_spec = importlib.util.spec_from_file_location(
    "accel_networks", Path(__file__).with_name("networks.py")
)
assert _spec is not None
assert _spec.loader is not None
networks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(networks)


@functools.cache
def case(mode: str, T: int, N: int):
    """A training step, values, and its results by TVM."""
    mod = networks.train_step(networks.network(mode, T=T, N=N, size=(9, 6)))
    values = networks.values_of(mod)
    return mod, values, networks.reference(mod, values)


@pytest.fixture(scope="module")
def step():
    """A training step, its program for four clusters, and values."""
    mod, values, _ = case("ptt", 2, 1)
    arch = load_architecture("ttsnn4")
    return arch, compile_program(mod, arch), values


def check(mode: str, T: int, N: int, name: str, **options: bool) -> None:
    """Every result is right and no timing can change it."""
    mod, values, want = case(mode, T, N)
    arch = load_architecture(name)
    program = compile_program(mod, arch, Options(**options))
    assert verify_order(program, arch) > 100
    networks.check(networks.results(program, arch, values), want)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("stt", "ttsnn4"), ("htt", "ttsnn4"), ("htt", "sata"), ("dense", "ttsnn4"), ("ptt", "sata")],
)
def test_training_steps_are_exact_and_free_of_races(mode, name):
    check(mode, 3, 2, name)


@pytest.mark.parametrize("off", list(Options().to_json()))
def test_every_idea_can_be_switched_off(off):
    check("ptt", 2, 1, "ttsnn4", **{off: False})


def _without_token(program, giver: int, unit: int):
    """The program without one token: neither given nor taken."""
    table = program.instructions.copy()
    sender = int(table["unit"][giver])
    number = int(((table["push"][:giver] >> unit & 1) * (table["unit"][:giver] == sender)).sum())
    takes = np.flatnonzero((table["unit"] == unit) & (table["pop"] >> sender & 1 == 1))
    table["push"][giver] &= ~np.uint16(1 << unit)
    table["pop"][takes[number]] &= ~np.uint16(1 << sender)
    return program.with_instructions(table)


def test_a_dropped_token_is_a_race(step):
    arch, program, _ = step
    table = program.instructions
    tokens = [(i, u) for i, m in enumerate(table["push"].tolist()) for u in range(16) if m >> u & 1]
    rng = np.random.default_rng(0)
    assert len(tokens) > 100
    for k in rng.choice(len(tokens), 25, replace=False):
        with pytest.raises(TargetError, match=r"race: instruction \d+ .* no token"):
            verify_order(_without_token(program, *tokens[k]), arch)


def test_a_token_that_is_never_given_is_a_deadlock(step):
    arch, program, _ = step
    table = program.instructions.copy()
    giver = int(np.flatnonzero(table["push"])[3])
    table["push"][giver] = 0
    with pytest.raises(TargetError, match=r"deadlock.*instruction \d+ \(\w+ on .*waits for"):
        simulate(program.with_instructions(table), arch)


def test_a_token_that_is_never_taken_is_found(step):
    arch, program, _ = step
    table = program.instructions.copy()
    last = int(np.flatnonzero(table["unit"] == 0)[-1])
    table["push"][last] |= 2
    with pytest.raises(TargetError, match="tokens are left"):
        simulate(program.with_instructions(table), arch)


def test_a_dropped_halo_is_found(step):
    arch, program, values = step
    found = 0
    for i in np.flatnonzero(program.instructions["op"] == Op.GEMM).tolist():
        g = program.geometry[program.instructions["attr"][i]]
        box = program.instructions["src0"][i]
        if g["taps"] < 3 or program.descriptors["h"][box] < 3:
            continue
        short = program.descriptors[box].copy()
        short["h"] -= 1
        table = program.instructions.copy()
        table["src0"][i] = len(program.descriptors)
        cut = replace(
            program, instructions=table, descriptors=np.append(program.descriptors, short)
        )
        with pytest.raises(TargetError, match=rf"instruction {i} .*halo is missing"):
            execute(cut, arch, values)
        found += 1
        if found == 3:
            break
    assert found


@pytest.mark.parametrize("role", ["g4", "wcross", "dg1"])
def test_a_dropped_core_is_found(step, role):
    """As in the published accounting, which has no fourth core."""
    arch, program, values = step
    table = program.instructions.copy()
    tags = [k for k, t in enumerate(program.tags) if t.layer == "conv1" and t.role == role]
    mine = np.isin(table["tag"], tags) & np.isin(table["op"], (Op.GEMM, Op.WGRAD))
    assert mine.any()
    table["op"][mine] = Op.SYNC
    for operand in ("dst", "dst1", "src0", "src1", "src2"):
        table[operand][mine] = NONE
    cut = program.with_instructions(table)
    assert simulate(cut, arch).macs < simulate(program, arch).macs
    missing = None
    try:
        got, _ = execute(cut, arch, values, dtype="float64")
    except TargetError as error:
        missing = str(error)
    if missing is not None:
        assert re.search("not there|nothing of this shape", missing)
    else:  # something else of the same shape was there before
        want, _ = execute(program, arch, values, dtype="float64")
        # a gradient towards the input changes the weights of the layers before
        assert any(np.abs(got[n] - want[n]).max() > 1e-6 * np.abs(want[n]).max() for n in want)
