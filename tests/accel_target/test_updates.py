"""Weights that are updated where the sums of their gradients lie."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import tvm

from ttsnn.accel_target.arch import Architecture, load_architecture
from ttsnn.accel_target.codegen import emit
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.sim.verify import verify_order
from ttsnn.accel_target.simulate import simulate

RANK = CHANNELS = 16


def _step(networks: ModuleType, mode: str, N: int = 1) -> tvm.IRModule:
    return networks.train_step(
        networks.network(
            mode, T=2, N=N, size=(8, 8), channels=(CHANNELS, CHANNELS), rank=RANK, stride=1
        )
    )


def _moved(program: Program, arch: Architecture) -> float:
    """Bytes of DRAM."""
    return simulate(program, arch).total("dram_read", "dram_write")


def _results(networks: ModuleType, mod: tvm.IRModule, program: Program, arch: Architecture) -> list:
    """Of the program, in order, which no timing can change."""
    assert verify_order(program, arch) > 100
    return networks.results(program, arch, networks.values_of(mod))


@pytest.mark.parametrize(
    ("mode", "name", "share", "N", "kinds"),
    [
        ("ptt", "sata", 1, 1, {("resident", True)}),
        ("ptt", "sata", 64, 1, {("resident", True), ("streamed", False)}),
        ("htt", "sata", 96, 1, {("resident", True), ("streamed", False)}),
        ("htt", "ttsnn4", 72, 2, {("resident", True), ("streamed", True)}),
    ],
)
def test_updates_move_fewer_bytes_and_change_no_result(
    networks: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    name: str,
    share: int,
    N: int,
    kinds: set[tuple[str, bool]],
) -> None:
    """Of sums that stay, that are streamed, and that leave the optimizer no room.

    With two images every block of a streamed sum is worked on twice, and updated the second time.
    """
    found: set[tuple[str, bool]] = set()
    real = emit.emit_update

    def recorded(b, held, total, update, grad) -> bool:
        done = real(b, held, total, update, grad)
        part = (total.w[1], total.c[1]) != total.param.shape[1:]
        found.add(("streamed" if part else "resident", done))
        return done

    monkeypatch.setattr(emit, "emit_update", recorded)
    mod, arch = _step(networks, mode, N), networks.small(load_architecture(name), share)
    programs = [compile_program(mod, arch, Options(updates=on)) for on in (True, False)]
    assert found == kinds
    want = networks.reference(mod, networks.values_of(mod))
    for program in programs:
        networks.check(_results(networks, mod, program, arch), want)
    on, off = (_moved(program, arch) for program in programs)
    assert on < off


def test_a_gradient_is_neither_written_nor_read(networks: ModuleType) -> None:
    """That is what the idea saves, to the byte; without fusion there is none of it."""
    mod, arch = _step(networks, "ptt"), load_architecture("sata")
    on, off = (_moved(compile_program(mod, arch, Options(updates=u)), arch) for u in (True, False))
    core = RANK * CHANNELS + 2 * 3 * RANK * RANK  # the last is not the sum of one product
    weights = 9 * 3 * CHANNELS + CHANNELS * CHANNELS + 4 * CHANNELS + 2 * core
    assert off - on == weights * arch.words.gradient // 8 * 2
    programs = [compile_program(mod, arch, Options(fusion=False, updates=u)) for u in (True, False)]
    np.testing.assert_array_equal(*(p.instructions for p in programs))


def test_timesteps_of_an_image_that_is_read_whole_are_not_parted(networks: ModuleType) -> None:
    """htt's two halves write one gradient, which a product behind a cut reads."""
    mod, arch = _step(networks, "htt"), networks.small(load_architecture("sata"), 64)
    got = _results(networks, mod, compile_program(mod, arch), arch)
    networks.check(got, networks.reference(mod, networks.values_of(mod)))


def test_a_streamed_sum_that_an_earlier_nest_began_is_added_to(
    networks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """htt's two kinds of steps in two nests, in buffers that hold no whole sum."""
    found = set()
    real = emit.plan_nest

    def recorded(nest, arch, down):
        plan = real(nest, arch, down)
        found.update(p.name for _, p in plan.streams if p.sums and p.loads)
        return plan

    monkeypatch.setattr(emit, "plan_nest", recorded)
    mod = networks.train_step(networks.network("htt", T=3, size=(4, 4), channels=(48, 48), rank=24))
    arch = networks.small(load_architecture("sata"), 80)
    program = compile_program(mod, arch, Options(norms=False))
    assert {"conv2.wg1", "conv2.wg4"} <= found
    want = networks.reference(mod, networks.values_of(mod))
    networks.check(_results(networks, mod, program, arch), want)
