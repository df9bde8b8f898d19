"""Reports, traces, plots, sweeps: sums that must agree, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ttsnn.accel_target import plots
from ttsnn.accel_target.arch import Architecture, load_architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.energy import energy
from ttsnn.accel_target.events import SimulationResult
from ttsnn.accel_target.program import Program
from ttsnn.accel_target.report import simulation_report
from ttsnn.accel_target.simulate import simulate
from ttsnn.accel_target.sweep import parse_sweep, scaled, sweep
from ttsnn.accel_target.tech import load_technology
from ttsnn.accel_target.trace import trace_of
from ttsnn.errors import TargetError

Case = tuple[Program, SimulationResult, Architecture]


@pytest.fixture(scope="module")
def case(networks: ModuleType) -> Case:
    arch = load_architecture("sata")
    mod = networks.train_step(networks.network("ptt", T=2, N=1))
    program = compile_program(mod, arch)
    return program, simulate(program, arch, values=networks.values_of(mod)), arch


@pytest.fixture(scope="module")
def report(case: Case) -> dict[str, Any]:
    return simulation_report(*case[1:], load_technology("sata28"))


@pytest.mark.parametrize("table", ["phases", "layers", "roles", "units"])
def test_tables_sum_to_the_totals(report: dict, table: str) -> None:
    total = report["energy_nj"]
    dynamic = total["total"] - total["leakage"]
    assert sum(r["energy_nj"]["total"] for r in report[table]) == pytest.approx(dynamic)
    for part in ("compute", "sram", "scratchpad", "dram"):
        assert sum(r["energy_nj"][part] for r in report[table]) == pytest.approx(total[part])
    assert (
        sum(r["macs"] for r in report[table]) == report["macs"] == sum(report["executed"].values())
    )
    if table != "units":
        assert sum(r["dram_bytes"] for r in report[table]) == report["dram_bytes"]


def test_energy_is_the_sum_of_its_parts(case: Case, report: dict) -> None:
    parts = {k: v for k, v in report["energy_nj"].items() if k != "total"}
    assert set(parts) == {"compute", "sram", "scratchpad", "link", "dram", "leakage"}
    assert sum(parts.values()) == pytest.approx(report["energy_nj"]["total"])
    again = energy(case[1], case[2], load_technology("sata28"))
    assert report["energy_nj"]["total"] == pytest.approx(again.total / 1e3)
    assert json.loads(json.dumps(report)) == report


def test_utilization_is_products_over_pe_cycles(case: Case, report: dict) -> None:
    _, result, arch = case
    assert report["utilization"] == pytest.approx(result.macs / (arch.pes * result.cycles))
    (array,) = [u for u in report["units"] if u["unit"] == "compute.array"]
    assert array["utilization"] == pytest.approx(report["utilization"])
    assert report["time_us"] == pytest.approx(result.cycles / 400)
    assert [p["phase"] for p in report["phases"]] == ["forward", "head", "backward", "update"]


def test_bounds_without_gated_products(case: Case) -> None:
    """A machine that skips zeros is bound by the executed products alone."""
    from ttsnn.accel_target.report import least_cycles

    _, result, arch = case
    skipping = dataclasses.replace(
        arch, clusters=(dataclasses.replace(arch.clusters[0], skip_zeros=True),)
    )
    executed = result.total("mac8", "mac16", "acc")
    assert least_cycles(result, arch)["compute"] == -(-result.macs // 128)
    assert least_cycles(result, skipping)["compute"] == -(-executed // 128)
    assert executed < result.macs


def test_a_trace_has_every_instruction(case: Case) -> None:
    program, result, arch = case
    events = trace_of(program, result, arch)["traceEvents"]
    rows = [e for e in events if e["ph"] == "X"]
    assert len(rows) == len(program)
    assert sum(e["dur"] for e in rows) == pytest.approx(float(result.busy.sum()) / 400)
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert names == dict(enumerate(u.name for u in result.units))
    by_unit: dict[int, float] = {}
    for e in rows:  # a unit does one thing at a time
        assert e["ts"] >= by_unit.get(e["tid"], 0.0) - 1e-9
        by_unit[e["tid"]] = e["ts"] + e["dur"]


def test_plots_are_written_whole(report: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [{"name": f"r{i}", "cycles": i + 1, "energy_nj": {"total": 9.0 - i}} for i in range(3)]
    plots.plot_energy({"one": report, "two": report}, tmp_path / "a.png")
    plots.plot_layers(report, tmp_path / "b.svg")
    plots.plot_units({"one": report}, tmp_path / "c.png")
    plots.plot_sweep(rows, tmp_path / "d.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.svg", "c.png", "d.png"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "conv1" in (tmp_path / "b.svg").read_text()
    with pytest.raises(TargetError, match="unknown format"):
        plots.check_plot(tmp_path / "e.bmp")
    with pytest.raises(TargetError, match="there is no folder"):
        plots.check_plot(tmp_path / "none" / "e.png")


def test_the_pareto_front() -> None:
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 2.0), (2.0, 3.0), (4.0, 1.0)]
    assert plots.pareto(points) == [1, 2, 0]


def test_scaled_architectures() -> None:
    four, sata = load_architecture("ttsnn4"), load_architecture("sata")
    assert scaled(four) == four
    twice = scaled(four, pes=256, buffers=416, dram=32)
    assert (twice.pes, twice.buffer_bytes, twice.dram.bytes_per_cycle) == (256, 416 * 1024, 32.0)
    assert [c.cols for c in twice.clusters] == [c.cols for c in four.clusters]
    one = scaled(four, clusters=1)
    assert (len(one.clusters), one.pes, one.buffer_bytes) == (1, 128, sata.buffer_bytes)
    assert (one.clusters[0].rows, one.clusters[0].cols) == (16, 8)
    assert one.links == ()
    assert Architecture.from_json(one.to_json()) == one
    with pytest.raises(TargetError, match="clusters can be 1 or 4, not 3"):
        scaled(four, clusters=3)
    with pytest.raises(TargetError, match="100 PEs cannot be shared out"):
        scaled(four, pes=100)


def test_sweeps_are_all_combinations() -> None:
    axes = parse_sweep("pes=64,128; buffers=104,208")
    assert axes == {"pes": [64, 128], "buffers": [104, 208]}
    found = dict(sweep(load_architecture("sata"), axes))
    assert list(found) == [
        "pes=64 buffers=104", "pes=64 buffers=208", "pes=128 buffers=104", "pes=128 buffers=208",
    ]  # fmt: skip
    assert found["pes=64 buffers=104"].pes == 64
    assert found["pes=64 buffers=104"].buffer_bytes == 104 * 1024


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("speed=9", "'speed=9' is no axis"),
        ("pes", "'pes' is no axis"),
        ("pes=a", "pes takes whole numbers"),
        ("pes=0", "pes takes whole numbers"),
        ("pes=", "pes takes whole numbers"),
        ("", "is empty"),
    ],
)
def test_wrong_sweeps_are_refused(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        parse_sweep(text)
