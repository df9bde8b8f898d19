"""What is read fewer times: turned products, shared weights, tiles taken over, spread gradients."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.codegen import lower
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.isa import DRAM, NONE, Flag, Op
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.simulate import simulate

READS = ("weight_read", "input_read", "output_read")


def _step(networks: ModuleType, mode: str = "ptt", **sizes):
    sizes = {"size": (12, 12), "channels": (32, 32), "rank": 4} | sizes
    return networks.train_step(networks.network(mode, **sizes))


def _results(networks: ModuleType, mod, program: Program, arch) -> list[np.ndarray]:
    return networks.results(program, arch, networks.values_of(mod))


def _moved(program: Program, name: str, role: str | None = None) -> float:
    """Elements of a DRAM tensor that are loaded and stored, in the instructions of a role."""
    total = 0
    for row in program.instructions:
        if row["op"] not in (Op.LOAD, Op.STORE):
            continue
        box = program.descriptors[row["src0" if row["op"] == Op.LOAD else "dst"]]
        if program.tensors[box["address"]].name != name:
            continue
        if role is None or program.tags[row["tag"]].role == role:
            total += int(box["f"]) * int(box["h"]) * int(box["w"]) * int(box["c"])
    return total


@pytest.mark.parametrize("dataflow", ["os", "ws"])
def test_a_turned_product_is_the_one_with_both_sides_exchanged(
    closed_forms: ModuleType, networks: ModuleType, dataflow: str
) -> None:
    """Its cycles are those of N × M; each operand is read as often as the other would be."""
    arch = load_architecture("sata")
    cluster = dataclasses.replace(arch.clusters[0], dataflow=dataflow)
    arch = dataclasses.replace(arch, clusters=(cluster,))
    program = compile_program(
        networks.convolution((1, 1, 19, 9, 6), (11, 19, 1, 1)), arch, Options(orient=False)
    )
    table = program.instructions.copy()
    products = table["op"] == Op.GEMM
    assert products.sum() == 1
    straight = simulate(program, arch)
    table["flags"][products] |= int(Flag.TURNED)
    turned = simulate(program.with_instructions(table), arch)
    for result, (m, n) in ((straight, (54, 11)), (turned, (11, 54))):
        busy = dict(zip([u.name for u in result.units], result.busy.tolist()))
        cycles = closed_forms.gemm_cycles(m, n, 19, 16, 8, dataflow)
        assert busy["compute.array"] == cycles
    k = 19
    reads = {
        "os": (-(-54 // 8) * 11 * k, -(-11 // 16) * 54 * k),
        "ws": (54 * k, -(-54 // 8) * 11 * k),
    }
    more = turned.total(*READS) - straight.total(*READS)
    if dataflow == "os":  # both operands have a byte an element
        assert more == sum(reads["os"]) - (-(-11 // 8) * 54 * k + -(-54 // 16) * 11 * k)
    assert turned.macs == straight.macs


def test_products_are_turned_where_that_reads_fewer_bytes(networks: ModuleType) -> None:
    """Those of gradients, and nothing else changes."""
    mod, arch = _step(networks, channels=(32, 40), rank=9), load_architecture("sata")
    on, off = (compile_program(mod, arch, Options(orient=o)) for o in (True, False))
    turned = (on.instructions["flags"] & Flag.TURNED) != 0
    assert 0 < turned.sum() < np.isin(on.instructions["op"], (Op.GEMM, Op.WGRAD)).sum()
    same = on.instructions["flags"] & ~np.uint16(Flag.TURNED) == off.instructions["flags"]
    assert same.all()
    reads = [simulate(p, arch).total(*READS) for p in (on, off)]
    assert reads[0] < reads[1]
    for a, b in zip(*(_results(networks, mod, p, arch) for p in (on, off)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_strided_shortcuts_gradient_is_never_in_dram_with_its_zeros(networks: ModuleType) -> None:
    """The quarter of its pixels that is not zero is; without fusion all of it."""
    mod, arch = _step(networks), load_architecture("sata")
    fused, apart = (compile_program(mod, arch, Options(fusion=f)) for f in (True, False))
    full = {t.name: np.prod(t.shape) for t in apart.tensors}["short.dx"]
    assert _moved(apart, "short.dx") == 2 * full
    small = [t for t in fused.tensors if t.name.startswith("short.dx")]
    assert [np.prod(t.shape) for t in small] == [full / 4]
    assert sum(_moved(fused, t.name) for t in small) == 2 * full / 4
    assert (fused.instructions["op"] == Op.POOLB).sum() > (
        apart.instructions["op"] == Op.POOLB
    ).sum()


def test_a_core_that_is_read_twice_in_a_nest_is_loaded_once(networks: ModuleType) -> None:
    """By the statistics of its batch norm; by the gradient's small products and the update."""
    mod, arch = _step(networks, channels=(32, 40)), load_architecture("sata")
    program = compile_program(mod, arch)
    core = 4 * 40
    assert _moved(program, "conv2.g4", "bn") == 3 * core  # Σ y²; Σ dy·x̂; M and dW
    assert _moved(program, "conv2.g4", "update") == 0


def test_pointwise_results_take_over_tiles(
    networks: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small buffers blocks are larger so, and instructions fewer; the results are the same."""
    mod, arch = _step(networks, "htt"), networks.small(load_architecture("ttsnn4"), 32)
    on = compile_program(mod, arch)
    pointwise = on.instructions[np.isin(on.instructions["op"], (Op.VEC, Op.LIFB, Op.BN_APPLY))]
    boxes = on.descriptors
    over = [
        r
        for r in pointwise
        if r["src0"] != NONE and r["dst"] == r["src0"] and boxes[r["dst"]]["memory"] != DRAM
    ]
    assert over
    want = networks.reference(mod, networks.values_of(mod))
    networks.check(_results(networks, mod, on, arch), want)
    monkeypatch.setattr(lower, "take_over", lambda nest: None)
    off = compile_program(mod, dataclasses.replace(arch, description="another, to plan anew"))
    assert len(on) < len(off)


def test_rows_that_no_gradient_reaches_read_none_that_is_to_come(networks: ModuleType) -> None:
    """In buffers with room for one row: rows between two a stride apart have nothing to read."""
    mod = _step(networks, "htt", size=(4, 4), channels=(16, 16), rank=12)
    arch = networks.small(load_architecture("sata"), 64)
    want = networks.reference(mod, networks.values_of(mod))
    networks.check(_results(networks, mod, compile_program(mod, arch), arch), want)


@pytest.mark.parametrize("mode", ["ptt", "htt"])
def test_clusters_that_work_apart_reach_what_they_read(networks: ModuleType, mode: str) -> None:
    """Tiles are not shared there: a weight lies in the cluster that multiplies by it."""
    mod, arch = _step(networks, mode, channels=(128, 128), rank=31), load_architecture("ttsnn4")
    program = compile_program(mod, arch, Options(lockstep=False))
    assert simulate(program, arch).macs > 0
    want = networks.reference(mod, networks.values_of(mod))
    networks.check(_results(networks, mod, program, arch), want)
