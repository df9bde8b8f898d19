"""The oracles themselves: against SCALE-Sim, PyTorch and the counting rule of plans."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from ttsnn.plans import LayerInfo, TTLayer, layer_cost

SHAPES = [(900, 64, 576), (1024, 24, 64), (960, 24, 72)]
TOTALS = {"os": [272687, 16511, 16919], "ws": [270143, 12743, 14969]}


@pytest.mark.parametrize("dataflow", ["os", "ws"])
def test_gemm_cycles_are_scale_sims(closed_forms: ModuleType, dataflow: str) -> None:
    """SCALE-Sim counts from cycle 0: one less."""
    found = [closed_forms.gemm_cycles(m, n, k, 16, 8, dataflow) - 1 for m, n, k in SHAPES]
    assert found == TOTALS[dataflow]


SCRIPT = """
from scalesim.scale_sim import scalesim
scalesim(save_disk_space=True, verbose=False, config="config.cfg", topology="gemm.csv",
         layout="layout.csv", input_type_gemm=True).run_scale(top_path=".")
"""
CONFIG = """[general]
run_name = run
[architecture_presets]
ArrayHeight: 16
ArrayWidth: 8
IfmapSramSzkB: 1024
FilterSramSzkB: 1024
OfmapSramSzkB: 1024
IfmapOffset: 0
FilterOffset: 10000000
OfmapOffset: 20000000
Dataflow: {dataflow}
Bandwidth: 10
ReadRequestBuffer: 32
WriteRequestBuffer: 32
[run_presets]
InterfaceBandwidth: CALC
UseRamulatorTrace: False
[layout]
IfmapCustomLayout: False
FilterCustomLayout: False
IfmapSRAMBankBandwidth: 10
IfmapSRAMBankNum: 10
IfmapSRAMBankPort: 2
FilterSRAMBankBandwidth: 10
FilterSRAMBankNum: 10
FilterSRAMBankPort: 2
[sparsity]
SparsitySupport: false
OptimizedMapping: false
"""


@pytest.mark.skipif("SCALESIM_PYTHON" not in os.environ, reason="no SCALESIM_PYTHON")
@pytest.mark.parametrize("dataflow", ["os", "ws"])
def test_gemm_cycles_against_scale_sim_itself(dataflow: str, tmp_path: Path) -> None:
    """SCALESIM_PYTHON names a Python with scalesim 3.0.0, which wants NumPy 1.26."""
    (tmp_path / "config.cfg").write_text(CONFIG.format(dataflow=dataflow))
    rows = [f"g{i},{m},{n},{k}," for i, (m, n, k) in enumerate(SHAPES)]
    (tmp_path / "gemm.csv").write_text("\n".join(["Layer,M,N,K,", *rows, ""]))
    layout = [f"g{i}," + "1," * 20 for i in range(len(SHAPES))]
    (tmp_path / "layout.csv").write_text("\n".join(["Layer", *layout, ""]))
    command = [os.environ["SCALESIM_PYTHON"], "-c", SCRIPT]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    report = next(tmp_path.rglob("COMPUTE_REPORT.csv")).read_text().splitlines()
    column = [c.strip() for c in report[0].split(",")].index("Total Cycles")
    assert [int(float(line.split(",")[column])) for line in report[1:]] == TOTALS[dataflow]


@pytest.mark.parametrize(("mode", "kind"), [("stt", "stt"), ("branches", "ptt"), ("ptt", "ptt")])
def test_chains_are_the_counting_rule_less_the_padding(
    closed_forms: ModuleType, mode: str, kind: str
) -> None:
    """The rule of plans counts taps outside the image, and both branches' centre taps."""
    cin, cout, rank, size = 5, 7, 3, (6, 9)
    info = LayerInfo(
        name="conv", kind="conv2d", weight_shape=(cout, cin, 3, 3), out_size=size, steps=1,
        calls=1, bias=0, strides=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1),
    )  # fmt: skip
    rule = layer_cost(info, TTLayer("conv2d", kind, (rank,) * 3)).flops
    merged = rank * rank * size[0] * size[1] if mode == "ptt" else 0
    padding = rank * rank * 2 * (size[0] + size[1])  # a column or row of taps at each edge
    assert sum(closed_forms.chain_macs(mode, cin, rank, cout, size).values()) == (
        rule - merged - padding
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(6, 9), (1, 1), (7, 7)])
def test_macs_are_pytorchs(closed_forms: ModuleType, stride: int, size: tuple[int, int]) -> None:
    """Each product of ones is one: convolutions of ones, one after another, summed up."""
    cin, rank, cout = 4, 3, 5
    sizes = {
        "g1": (cin, rank, (1, 1), (1, 1)),
        "g2": (rank, rank, (3, 1), (stride, 1)),
        "g3": (rank, rank, (1, 3), (1, stride)),
        "g4": (rank, cout, (1, 1), (1, 1)),
    }

    def ones(before: int, after: int, kernel: tuple, strides: tuple, at: tuple) -> torch.Tensor:
        padding = (kernel[0] // 2, kernel[1] // 2)
        weight = torch.ones(after, before, *kernel, dtype=torch.float64)
        x = torch.ones(1, before, *at, dtype=torch.float64)
        return torch.nn.functional.conv2d(x, weight, stride=strides, padding=padding)

    found, at = {}, size
    for name, shape in sizes.items():
        y = ones(*shape, at)
        found[name], at = int(y.sum()), tuple(y.shape[2:])
    assert at == closed_forms.out_size(size, 3, stride)
    assert closed_forms.chain_macs("stt", cin, rank, cout, size, stride) == found
    dense = ones(cin, cout, (3, 3), (stride, stride), size)
    assert closed_forms.conv_macs(cin, cout, 3, size, stride) == int(dense.sum())


def test_training_has_three_phases(closed_forms: ModuleType) -> None:
    forward = closed_forms.chain_macs("ptt", 4, 3, 5, (6, 6), 2)
    phases = closed_forms.training_macs(forward)
    assert sum(sum(p.values()) for p in phases.values()) == 3 * sum(forward.values())
    assert "g1" not in closed_forms.training_macs(forward, first=True)["input_gradient"]


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_active_accumulates_are_a_convolution_of_ones(
    closed_forms: ModuleType, kernel: int, stride: int
) -> None:
    rng = np.random.default_rng(kernel * 10 + stride)
    spikes = (rng.random((2, 2, 3, 5, 7)) < 0.3).astype(float)
    cout, out = 4, closed_forms.out_size((5, 7), kernel, stride)
    ones = torch.ones(cout, 3, kernel, kernel, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(spikes).flatten(0, 1), ones, stride=stride, padding=kernel // 2
    )
    assert tuple(expected.shape[2:]) == out
    found = closed_forms.active_accumulates(
        spikes, cout, closed_forms.square_taps(kernel), stride, out
    )
    assert found == int(expected.sum())


def test_compulsory_traffic_and_roofline(closed_forms: ModuleType) -> None:
    read, write = closed_forms.compulsory_dram(
        {"spikes": (17, 1), "weight": (10, 8)}, {"y": (3, 16)}
    )
    assert (read, write) == (3 + 10, 6)
    assert closed_forms.roofline(1000, 10, 10, pes=128, bytes_per_cycle=16) == 8
    assert closed_forms.roofline(1, 1601, 10, pes=128, bytes_per_cycle=16) == 101
    assert closed_forms.roofline(1, 10, 1601, pes=128, bytes_per_cycle=16) == 101
