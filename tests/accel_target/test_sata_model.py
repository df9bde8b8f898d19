"""The published accounting: its counts against published ones, its energies against all figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from ttsnn.accel_target.sata_model import Conv, chain, dense_resnet18, inference_energy, tt_resnet

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/accel_published.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("accel_published", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("conv", "total", "filters"),
    [  # SCALE-Sim's cycles in the published cycle-stat.yaml: whole layer, filter loading
        (Conv(32, (3, 3), 3, 64), 26 + 22317, 14085),
        (Conv(32, (1, 1), 64, 24), 63 + 16448, 11697),
        (Conv(32, (3, 1), 24, 24), 71 + 16848, 13987),
        (Conv(48, (1, 3), 16, 16), 47 + 19272, 11245),
        (Conv(16, (3, 3), 128, 128, 2), 1151 + 73984, 117417),
        (Conv(4, (3, 3), 512, 512), 4619 + 291700, 774117),
        (Conv(1, (1, 1), 512, 10, linear=True), 526 + 535, 2472),
    ],
)
def test_cycles_are_those_of_scale_sim(conv: Conv, total: int, filters: int) -> None:
    """All columns used: to the cycle; unused columns of the last fold save one cycle each."""
    unused = -conv.cout % 8
    assert inference_energy([conv], 1).cycles == total + filters + unused


@pytest.mark.parametrize(
    ("conv", "reads"),
    [  # published DRAM reads of the input
        (Conv(32, (3, 3), 3, 64), 3072),
        (Conv(32, (1, 1), 64, 24), 196608),
        (Conv(48, (1, 1), 64, 12), 294912),
        (Conv(24, (3, 1), 22, 22), 12672),
        (Conv(16, (1, 1), 64, 37), 81920),
        (Conv(8, (3, 3), 128, 256), 8192),
    ],
)
def test_inputs_that_do_not_fit_are_read_once_a_fold(conv: Conv, reads: int) -> None:
    weights, outputs = conv.taps * conv.cout, conv.positions * conv.cout
    assert inference_energy([conv], 1).dram_elements == reads + weights + outputs


def test_overlapping_windows_are_read_again() -> None:
    """Within 5 % of the published count, where without the overlap it is 19 % below."""
    conv = Conv(32, (3, 3), 64, 64)
    reads = inference_energy([conv], 1).dram_elements - 36864 - 57600
    assert reads == pytest.approx(649682, rel=0.05)
    assert reads > 1.1 * 8 * 32 * 32 * 64


def test_workloads_have_the_published_layers() -> None:
    assert len(dense_resnet18()) == 18
    stt = tt_resnet((3, 4, 6, 3), [8] * 32, size=48, in_channels=2, classes=101)
    assert len(stt) == 130
    fourth = tt_resnet(
        (3, 4, 6, 3), [8] * 32, size=48, in_channels=2, classes=101, variant="no_fourth"
    )
    assert len(fourth) == 98
    assert [c for c in stt if c not in fourth] == [c for c in stt if c.cin == 8 and c.cout > 8]


def test_variants_edit_the_traffic_alone() -> None:
    stt, ptt, htt = (inference_energy(chain(16, 64, 40, 128, v), 4) for v in ("stt", "ptt", "htt"))
    assert ptt.dram_elements - stt.dram_elements == 14 * 16 * 40  # the sum's second operand
    assert htt.dram_elements < stt.dram_elements
    assert stt.cycles == ptt.cycles == htt.cycles
    assert stt.compute == ptt.compute == htt.compute


def test_traffic_of_every_step() -> None:
    """Activations move T times as much, weights do not, cycles and arithmetic stay."""
    layers = chain(16, 64, 40, 128)
    one, all_steps = (inference_energy(layers, 4, every_step=e) for e in (False, True))
    weights = sum(c.taps * c.cout for c in layers)
    assert all_steps.dram_elements - weights == 4 * (one.dram_elements - weights)
    assert (all_steps.cycles, all_steps.compute) == (one.cycles, one.compute)
    assert all_steps.sram > one.sram


def test_every_published_figure_is_reproduced(script: ModuleType) -> None:
    data = script.figures()
    assert script.failures(data) == []
    totals = {name: round(p["total"], 3) for name, p in data["published"].items()}
    assert totals["resnet18 dense"] == 12.942
    assert totals["resnet18 stt"] == 4.138
    assert totals["resnet18 ptt"] == 4.211
    assert totals["resnet18 htt"] == 3.841
    headline = data["headline"]
    assert headline["fourth core left out"] == pytest.approx(-28.3, abs=1)
    assert headline["fourth core charged"] > 0  # with every core, ptt costs more than stt
    assert -75 < data["stt against dense"]["model"] < -60


def test_a_changed_model_is_noticed(script: ModuleType) -> None:
    data = script.figures()
    data["inference"]["resnet18 htt"]["dram"] *= 1.02
    data["headline"]["fourth core left out"] = -26.0
    data["training"]["spad_wup"] += 1e-3
    assert len(script.failures(data)) == 3


def test_the_training_model_is_satas(script: ModuleType) -> None:
    data = script.figures()
    assert sum(data["training"].values()) == pytest.approx(49.37, abs=5e-3)
    # Unfused, the chain costs more than the dense layer.
    assert sum(data["training, four separate cores"].values()) == pytest.approx(66.6, abs=0.05)
