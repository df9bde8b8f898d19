"""``benchmarks/gpu.py`` without a GPU: cases of the emulated device, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def call(gpu, monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *map(str, words)])
    return gpu.main()


def test_cases_run(gpu, monkeypatch, tmp_path, capsys):
    options = ["--target", "cuda-emulated", "--archs", "sm_90", "--networks", "spiking_mlp"]
    options += ["--modes", "ptt", "--batches", 2, "--timesteps", 2, "--precisions", "fp32"]
    options += ["--plan", "rank=4"]
    assert call(gpu, monkeypatch, "compile", tmp_path, "--dataset", "digits", *options) == 0
    monkeypatch.setattr(gpu.torch, "compile", lambda _model: 1 / 0)  # as where Triton is missing
    out = tmp_path / "out.json"
    options = ["--device", "cpu", "--repeats", 1, "--inner", 1, "--out", out]
    assert call(gpu, monkeypatch, "run", tmp_path, *options) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [r["phase"] for r in rows] == ["inference", "train"]
    for row in rows:
        installed = {"spikingjelly"} if importlib.util.find_spec("spikingjelly") else set()
        assert set(row["results"]) == {"ttsnn", "eager_loop", "eager_folded"} | installed
        assert "ZeroDivisionError" in row["errors"]["inductor"]
        assert row["launches"] > 3
    assert rows[0]["max_abs_error"] < 1e-3
    assert rows[1]["loss_error"] < 1e-4
    assert "inductor ZeroDivisionError" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    assert call(gpu, monkeypatch, "plot", out) == 0
    assert out.with_suffix(".png").stat().st_size > 5000
    out.write_text(json.dumps({"device": "", "rows": [rows[0] | {"results": {}}]}))
    assert call(gpu, monkeypatch, "plot", out) == 2


def test_no_gpu_and_no_cases(gpu, monkeypatch, tmp_path, capsys):
    if not gpu.torch.cuda.is_available():
        assert call(gpu, monkeypatch, "run", tmp_path) == 2
        assert "sees no GPU" in capsys.readouterr().out
    assert call(gpu, monkeypatch, "run", tmp_path, "--device", "cpu") == 2
    assert "cases.json is missing" in capsys.readouterr().out


def test_roofline(gpu, monkeypatch, capsys):
    small = ["--network", "spiking_mlp", "--mode", "dense", "--batch", 3, "--timesteps", 2]
    assert call(gpu, monkeypatch, "roofline", *small, "--dataset", "digits") == 0
    lines = capsys.readouterr().out.splitlines()
    total = [float(v) for v in lines[-1].split()[1:]]
    assert lines[-1].startswith("all")
    assert total[0] == sum(int(line.split()[1]) for line in lines[2:-1]) > 10
    assert total[3] >= total[0] * gpu.LAUNCH * 1e3 * 0.99
