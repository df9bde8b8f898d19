"""Programs as bytes and as text; damaged and impossible ones are refused with our errors alone."""

from __future__ import annotations

import contextlib
from types import ModuleType

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ttsnn.accel_target import isa
from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.assembler import assemble, disassemble
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.container import pack, unpack
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.simulate import simulate
from ttsnn.errors import ArtifactError, TargetError, TTSNNError

TABLES = ("instructions", "descriptors", "geometry", "taps", "scalars")
FUZZ = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def programs(networks: ModuleType) -> dict[str, tuple[Program, dict]]:
    """A training step of each mode on ``sata``, with values."""
    made = {}
    for mode in ("stt", "htt"):
        net = networks.network(mode, T=2, N=1, size=(5, 4), channels=(6, 8), rank=3)
        mod = networks.train_step(net)
        made[mode] = compile_program(mod, load_architecture("sata")), networks.values_of(mod)
    return made


def same(a: Program, b: Program) -> bool:
    plain = all(
        getattr(a, n) == getattr(b, n)
        for n in ("arch", "fingerprint", "tags", "units", "tensors", "info")
    )
    return plain and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in TABLES)


@pytest.mark.parametrize("mode", ["stt", "htt"])
def test_bytes_and_text_round_trip(programs: dict, mode: str) -> None:
    program, _ = programs[mode]
    data = pack(program)
    assert same(unpack(data), program)
    assert pack(unpack(data)) == data
    text = disassemble(program)
    assert same(assemble(text), program)
    assert disassemble(assemble(text)) == text


def test_an_instruction_is_32_bytes(programs: dict) -> None:
    program, _ = programs["stt"]
    assert isa.INSTRUCTION.itemsize == 32
    assert program.instructions.tobytes() in pack(program)


@FUZZ
@given(data=st.data())
def test_damaged_bytes_are_refused(programs: dict, data: st.DataObject) -> None:
    """One changed byte anywhere, or a cut: the checksums see it."""
    whole = pack(programs["stt"][0])
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:at]
    else:
        flip = data.draw(st.integers(1, 255))
        broken = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    with pytest.raises(ArtifactError, match="accelerator program"):
        unpack(broken)


@FUZZ
@given(data=st.data())
def test_damaged_text_is_refused_or_another_program(programs: dict, data: st.DataObject) -> None:
    lines = disassemble(programs["stt"][0]).splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    line = lines[at]
    cut = data.draw(st.integers(0, len(line)))
    lines[at] = line[:cut] + data.draw(st.text(max_size=4)) + line[cut + 1 :]
    with contextlib.suppress(ArtifactError):  # anything else fails the test
        assemble("\n".join(lines))


@FUZZ
@given(data=st.data())
def test_fuzzed_fields_never_escape_our_errors(programs: dict, data: st.DataObject) -> None:
    """A field of a table with any value: refused by name, or executed to some result."""
    program, values = programs[data.draw(st.sampled_from(["stt", "htt"]))]
    name = data.draw(st.sampled_from(["instructions", "descriptors", "geometry", "taps"]))
    table = getattr(program, name).copy()
    row = data.draw(st.integers(0, len(table) - 1))
    field = data.draw(st.sampled_from(list(table.dtype.names)))
    info = np.iinfo(table.dtype[field])
    near = st.integers(0, min(40, info.max))
    table[field][row] = data.draw(near | st.integers(int(info.min), int(info.max)))
    changed = Program(**{**vars(program), name: table})
    try:
        result = simulate(changed, load_architecture("sata"), values=values)
    except TTSNNError:
        return  # anything else fails the test
    assert result.cycles > 0


def test_another_architecture_refuses_a_program(programs: dict) -> None:
    with pytest.raises(TargetError, match="generated for architecture 'sata'"):
        simulate(programs["stt"][0], load_architecture("ttsnn4"))


@pytest.mark.parametrize("field", ["push", "pop"])
def test_a_lost_token_is_noticed(programs: dict, field: str) -> None:
    """Given and never taken, or waited for and never given."""
    program, _ = programs["stt"]
    rows = np.flatnonzero(program.instructions[field])
    for row in rows[:: max(1, len(rows) // 40)].tolist():
        table = program.instructions.copy()
        mask = int(table[field][row])
        table[field][row] = mask & (mask - 1)  # without its lowest bit
        with pytest.raises(TargetError, match=r"deadlock: .* instruction|tokens are left"):
            simulate(program.with_instructions(table), load_architecture("sata"))
