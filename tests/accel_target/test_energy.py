"""Technologies and energies: published values, hand-made sums, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ttsnn.accel_target.arch import load_architecture
from ttsnn.accel_target.energy import CATEGORIES, energy, event_costs, leakage_mw
from ttsnn.accel_target.events import EVENTS, SimulationResult, Tag, Unit
from ttsnn.accel_target.settings import shipped
from ttsnn.accel_target.tech import COMPUTE_EVENTS, Technology, load_technology, technologies
from ttsnn.errors import TargetError


def test_sata16_is_the_published_model() -> None:
    """SATA's own sums, pJ: a MAC of an ANN, its forward MAC, LIF and PGU."""
    tech = load_technology("sata16")
    assert tech.event_pj("mac16") == pytest.approx(0.239 + 0.0389)
    assert tech.event_pj("acc") == pytest.approx(0.000794 + 0.0389)
    lif = 0.00967 + 0.00309 + 2 * 0.00172 + 3 * 0.0301 + 0.00605
    assert tech.event_pj("lif") == pytest.approx(lif)
    pgu = 0.239 + 2 * 0.00967 + 0.00172 + 2 * 0.00605
    assert tech.event_pj("lif_grad") == pytest.approx(pgu)
    assert 2 * tech.dram.read == pytest.approx(55.58)
    assert 2 * tech.sram_pj(147456).read == pytest.approx(1.95)
    assert 2 * tech.scratchpad == pytest.approx(0.2779)


def test_sata28_is_the_published_component_table() -> None:
    tech = load_technology("sata28")
    rounded = {
        "add16": 0.092, "add32": 0.190, "mul8": 0.205, "mul16": 1.28,
        "and8": 0.006, "register16": 0.063, "compare16": 0.049,
    }  # fmt: skip
    for name, value in rounded.items():
        assert tech.components[name] == pytest.approx(value, abs=5e-3), name
    assert tech.sram_pj(32768).read == pytest.approx(0.345, abs=1e-3)
    assert tech.sram_pj(147456).read == pytest.approx(0.895, abs=1e-3)
    assert tech.sram_leakage_mw(147456) == pytest.approx(24.9, abs=0.05)
    assert tech.dram.read == pytest.approx(468.8, abs=0.1)


@pytest.mark.parametrize("name", technologies())
def test_buffers_cost_more_the_larger_they_are(name: str) -> None:
    tech = load_technology(name)
    sizes = [1, 8192, 32768, 40000, 147455, 147456, 1 << 21]
    costs = [tech.sram_pj(s).read for s in sizes]
    assert costs == sorted(costs)
    assert costs[0] == tech.sram[0].read  # no extrapolation below the smallest
    leaks = [tech.sram_leakage_mw(s) for s in sizes]
    assert leaks == sorted(leaks)
    assert tech.sram_leakage_mw(2 * tech.sram[-1].bytes) == pytest.approx(2 * tech.sram[-1].leakage)


def result_of(counts: np.ndarray, units: list[Unit], cycles: int = 400) -> SimulationResult:
    tags = [Tag(f"layer{i}", ("forward", "backward")[i % 2], "g1") for i in range(len(counts))]
    none = np.zeros(0)
    return SimulationResult(counts, tags, units, cycles, none, none, none, none, {}, 0)


UNITS = [Unit("load", "load"), Unit("compute.a", "compute", 0), Unit("compute.d", "compute", 3)]


@pytest.mark.parametrize("name", technologies())
def test_energy_is_the_sum_over_events(name: str) -> None:
    """Every event once, at random counts, against a loop over a table written out by hand."""
    rng = np.random.default_rng(0)
    arch, tech = load_architecture("ttsnn4"), load_technology(name)
    counts = rng.integers(0, 1000, (3, len(UNITS), len(EVENTS))).astype(float)
    report = energy(result_of(counts, UNITS), arch, tech)
    expected = 0.0
    for u, unit in enumerate(UNITS):
        clusters = arch.clusters if unit.cluster < 0 else [arch.clusters[unit.cluster]]
        for e, event in enumerate(EVENTS):
            if event in COMPUTE_EVENTS:
                pj = sum(tech.components[c] * n for c, n in tech.events[event].items())
            elif event == "spad_bytes":
                pj = tech.scratchpad
            elif event.startswith("link"):
                pj = tech.link.write if event == "link_sent" else tech.link.read
            elif event.startswith("dram") or event == "fetch":
                pj = tech.dram.write if event == "dram_write" else tech.dram.read
            else:
                buffer, way = event.split("_")
                sizes = np.array([getattr(c, f"{buffer}_buffer") for c in clusters])
                pj = np.average([getattr(tech.sram_pj(s), way) for s in sizes], weights=sizes)
            expected += pj * counts[:, u, e].sum()
    dynamic = report.total - report.leakage
    assert dynamic == pytest.approx(expected, rel=1e-12)
    for split in (report.by_layer(), report.by_phase(), report.by_unit()):
        assert sum(sum(v.values()) for v in split.values()) == pytest.approx(dynamic, rel=1e-12)
    assert set(report.by_phase()) == {"forward", "backward"}
    data = report.to_json()
    assert data["total"] == pytest.approx(sum(data[c] for c in CATEGORIES), rel=1e-12)


def test_each_event_lands_in_its_category() -> None:
    arch, tech = load_architecture("sata"), load_technology("sata28")
    where = {
        "mac8": "compute", "gated": "compute", "vec_special": "compute", "weight_read": "sram",
        "output_write": "sram", "spad_bytes": "scratchpad", "link_received": "link",
        "dram_read": "dram", "fetch": "dram",
    }  # fmt: skip
    for event, category in where.items():
        counts = np.zeros((1, 1, len(EVENTS)))
        counts[0, 0, EVENTS.index(event)] = 7
        parts = energy(result_of(counts, UNITS[1:2], cycles=0), arch, tech).by_category()
        assert {c for c, pj in parts.items() if pj} == {category}, event


def test_without_gating_zeros_cost_what_the_others_cost() -> None:
    arch, tech = load_architecture("sata"), load_technology("sata16")
    counts = np.zeros((3, 1, len(EVENTS)))
    for row, (name, executed, gated) in enumerate(
        [("acc", 10, 90), ("mac8", 5, 15), ("mac16", 0, 4)]
    ):
        counts[row, 0, EVENTS.index(name)] = executed
        counts[row, 0, EVENTS.index("gated")] = gated
    result = result_of(counts, UNITS[1:2], cycles=0)
    acc, mac, nothing = (tech.event_pj(e) for e in ("acc", "mac8", "gated"))
    with_gating = energy(result, arch, tech).total
    assert with_gating == pytest.approx(10 * acc + 5 * mac + 109 * nothing)
    without = energy(result, arch, tech, gating=False).total
    assert without == pytest.approx(100 * acc + 24 * mac)
    assert result.counts[0, 0, EVENTS.index("gated")] == 90  # left as they are


def test_leakage_is_power_times_time() -> None:
    arch, tech = load_architecture("sata"), load_technology("sata28")
    power = 24.9086 + 2 * 6.25862 + 128 * 0.000669  # mW
    assert leakage_mw(arch, tech) == pytest.approx(power)
    counts = np.zeros((1, 1, len(EVENTS)))
    report = energy(result_of(counts, UNITS[:1], cycles=400), arch, tech)  # 1 µs
    assert report.total == report.leakage == pytest.approx(power * 1e3)  # mW · µs = nJ


def test_a_cluster_pays_for_its_own_buffers() -> None:
    sata, tech = load_architecture("sata"), load_technology("sata28")
    read = EVENTS.index("weight_read")
    whole = event_costs(sata, tech, Unit("compute.array", "compute", 0))[read]
    part = event_costs(load_architecture("ttsnn4"), tech, UNITS[1])[read]
    assert whole == pytest.approx(0.89473)
    assert part < whole / 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("mul8 = 0.20525", "mul8 = -1", "components.mul8 is -1.0; it must be at least 0"),
        ("vec_cmp =", "vec_compare =", "events.vec_cmp is missing"),
        ("lif_grad = { mul16 = 1", "lif_grad = { mul17 = 1", "events.lif_grad.mul17 is no compon"),
        ("gated = { and8 = 1 }", "gated = 1", "events.gated must be a table"),
        ("bytes = 147456", "bytes = 1024", "sram has sizes [32768, 1024]; list them from small"),
        ("pe_leakage", "pe_leek", "pe_leek is no known key; did you mean 'pe_leakage'?"),
    ],
)
def test_impossible_tables_are_refused(old: str, new: str, words: str, tmp_path: Path) -> None:
    text = shipped("technologies")["sata28"].read_text("utf-8")
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(TargetError) as error:
        load_technology(path)
    assert words in str(error.value)
    with pytest.raises(TargetError, match="unknown technology 'sata82', did you mean sata28"):
        load_technology("sata82")


def test_fingerprint_and_json() -> None:
    tech = load_technology("sata28")
    assert load_technology(tech) is tech
    assert dataclasses.replace(tech, scratchpad=1.0).fingerprint != tech.fingerprint
    assert set(tech.to_json()) == {f.name for f in dataclasses.fields(Technology)}
