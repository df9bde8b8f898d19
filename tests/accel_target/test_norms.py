"""Batch norms on a chain's cores, cuts of groups, and clusters in lockstep."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.codegen.choose import choose
from ttsnn.accel_target.codegen.cuts import cut_groups
from ttsnn.accel_target.codegen.fuse import partition
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.codegen.importer import import_graph
from ttsnn.accel_target.codegen.normed import normed_calls
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.isa import Flag, Op
from ttsnn.accel_target.lockstep import can_lockstep, ring_width
from ttsnn.accel_target.simulate import simulate
from ttsnn.errors import TargetError
from ttsnn.passes.training.graph import Graph


@pytest.mark.parametrize(("mode", "count"), [("ptt", 2), ("htt", 2), ("dense", 0)])
def test_layers_behind_which_only_a_batch_norm_stands_are_found(
    networks: ModuleType, mode: str, count: int
) -> None:
    mod = networks.network(mode)
    assert len(normed_calls(Graph.of(networks.train_step(mod)["main"]))) == count
    assert not normed_calls(Graph.of(mod["main"]))  # inference has no statistics


@pytest.mark.parametrize("mode", ["stt", "ptt", "htt"])
def test_neither_the_result_nor_its_gradient_is_in_dram(networks: ModuleType, mode: str) -> None:
    """Of a layer whose batch norm is computed on its cores; without the idea both are."""
    arch = load_architecture("sata")
    mod = networks.train_step(networks.network(mode, size=(12, 12), channels=(32, 32), rank=4))

    def wide(options: Options) -> set[str]:
        program = compile_program(mod, arch, options)
        names = {t.name for t in program.tensors}
        return {n for n in names if n.startswith("conv2.") and n.split(".")[1] in ("conv", "dx")}

    assert wide(Options()) == {"conv2.dx"} - {"conv2.dx"}
    assert wide(Options(norms=False, recompute=False)) != set()
    moved = [
        simulate(compile_program(mod, arch, Options(norms=on)), arch).total(
            "dram_read", "dram_write"
        )
        for on in (True, False)
    ]
    assert moved[0] < moved[1]


@pytest.mark.parametrize("mode", ["ptt", "stt"])
def test_cuts_move_fewer_bytes_and_change_no_result(networks: ModuleType, mode: str) -> None:
    arch, options = networks.small(load_architecture("sata"), 32), Options()
    mod = networks.train_step(
        networks.network(mode, size=(8, 8), channels=(40, 40), rank=16, stride=1)
    )
    graph = import_graph(mod, options, choose(mod, arch, options).variants)
    groups = partition(graph)
    parts, traffic = cut_groups(graph, groups, arch, options)
    assert len(parts) > len(groups)
    assert np.isfinite(sum(traffic))
    assert [n for g in parts for n in g.nodes] == [n for g in groups for n in g.nodes]
    values = networks.values_of(mod)
    want = networks.reference(mod, values)
    networks.check(networks.results(compile_program(mod, arch, options), arch, values), want)


@pytest.mark.parametrize("dataflow", ["os", "ws"])
def test_clusters_in_lockstep_are_one_array(
    closed_forms: ModuleType, networks: ModuleType, dataflow: str
) -> None:
    """16 × 8 PEs read and stage each operand as often as one such array; links add two cycles."""
    base = load_architecture("ttsnn4")
    arch = dataclasses.replace(
        base, clusters=tuple(dataclasses.replace(c, dataflow=dataflow) for c in base.clusters)
    )
    one = load_architecture("sata")
    one = dataclasses.replace(
        one, clusters=(dataclasses.replace(one.clusters[0], dataflow=dataflow),)
    )
    mod = networks.convolution((1, 1, 19, 9, 6), (11, 19, 1, 1))
    options = Options(orient=False)
    program = compile_program(mod, arch, options)
    assert (program.instructions["flags"][program.instructions["op"] == Op.GEMM] & 0x1000).all()
    got, alone = simulate(program, arch), simulate(compile_program(mod, one, options), one)
    tiles = []
    for row in program.instructions[program.instructions["op"] == Op.GEMM]:
        box = program.descriptors[row["dst"]]
        tiles.append((int(box["f"] * box["h"] * box["w"]), int(box["c"])))
    assert sum(m * n for m, n in tiles) == 54 * 11
    folds = sum(-(-(m if dataflow == "os" else 19) // 16) * -(-n // 8) for m, n in tiles)
    closed = sum(closed_forms.gemm_cycles(m, n, 19, 16, 8, dataflow) for m, n in tiles)
    busy = dict(zip([u.name for u in got.units], got.busy.tolist()))
    assert busy["compute.a"] == closed + 2 * folds
    assert busy["compute.b"] == busy["compute.c"] == busy["compute.d"] == 0
    if len(tiles) == 1:
        reads = [r.total("weight_read", "input_read", "output_read") for r in (got, alone)]
        assert reads[0] == reads[1]
        assert got.total("spad_bytes") == alone.total("spad_bytes")
    assert got.total("link_sent") == got.total("link_received") > 0
    assert got.macs == alone.macs


def test_lockstep_needs_four_equal_clusters_and_their_links(networks: ModuleType) -> None:
    base = load_architecture("ttsnn4")
    assert can_lockstep(base)
    assert ring_width(base) == 16
    assert not can_lockstep(load_architecture("sata"))
    uneven = (dataclasses.replace(base.clusters[0], rows=4), *base.clusters[1:])
    assert not can_lockstep(dataclasses.replace(base, clusters=uneven))
    assert not can_lockstep(dataclasses.replace(base, links=base.links[1:]))
    mod = networks.convolution((1, 1, 8, 9, 6), (8, 8, 1, 1))
    program = compile_program(mod, base)
    table = program.instructions.copy()
    products = np.flatnonzero(table["op"] == Op.GEMM)
    table["unit"][products[0]] += 1
    with pytest.raises(TargetError, match="in lockstep"):
        simulate(program.with_instructions(table), base)
    sata = load_architecture("sata")
    program = compile_program(mod, sata)
    table = program.instructions.copy()
    table["flags"] |= np.where(table["op"] == Op.GEMM, int(Flag.LOCKSTEP), 0).astype("<u2")
    with pytest.raises(TargetError, match="four equal clusters"):
        simulate(program.with_instructions(table), sata)
