"""``benchmarks/gpu`` without a GPU: emulated cases, what it refuses, what it survives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from ttsnn.runtime.bundle import BundledNet, write_bundle

ENTRY = Path(__file__).parents[2] / "benchmarks" / "gpu"
sys.path.insert(0, str(ENTRY.parent))

from gpu import agreement, cases, command, store, summary  # noqa: E402

TORCH = [  # what importing PyTorch needs
    "torch",
    "torchgen",
    "functorch",
    "numpy",
    "numpy.libs",
    "typing_extensions.py",
    "sympy",
    "mpmath",
    "filelock",
    "jinja2",
    "markupsafe",
    "networkx",
    "fsspec",
]
NAMES = [
    "inference-spiking_mlp-ptt-b1-T2-fp32-graph",
    "inference-spiking_mlp-ptt-b1-T2-fp32",
    "train-spiking_mlp-ptt-b1-T2-fp32",
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    options = ["--target", "cuda-emulated", "--archs", "sm_90", "--networks", "spiking_mlp"]
    options += ["--modes", "ptt", "--batches", "1,3", "--timesteps", "2", "--precisions", "fp32"]
    options += ["--plan", "rank=4", "--dataset", "digits", "--only", "*-b1-*"]
    assert command.main(["compile", str(folder), *options]) == 0
    return folder


def run(folder: Path, out: Path, *words: str) -> int:
    fast = ["--device", "cpu", "--repeats", "1", "--seconds", "0", "--out", str(out)]
    return command.main(["run", str(folder), *fast, *words])


@pytest.fixture
def copied(compiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(compiled, tmp_path / "cases"))


def test_cases_run(copied, tmp_path, capfd):
    (copied / f"{NAMES[0]}.check.safetensors").unlink()
    out = tmp_path / "out.json"
    peers = "ttsnn,eager_loop,spikingjelly"
    assert run(copied, out, "--contenders", peers, "--only", "inference*") == 0
    rows = json.loads(out.read_text())["rows"]
    assert [cases.Case.of(r).name for r in rows] == NAMES[:2]
    for row, against in zip(rows, ("PyTorch here", "stored"), strict=True):
        assert {"ttsnn", "eager_loop"} <= set(row["results"])
        assert ("spikingjelly" in row["results"]) != ("spikingjelly" in row["errors"])
        assert row["launches"] > 3
        assert row["check"]["ok"]
        assert row["check"]["against"] == against
        assert row["check"]["max_rel_error"] < 1e-3
    assert rows[1]["check"]["flipped_spikes"] == 0
    assert rows[1]["check"]["spike_places"] > 100
    assert "  check: right (0 of" in capfd.readouterr().out
    assert command.main(["summary", str(out)]) == 0
    pytest.importorskip("matplotlib")
    assert command.main(["plot", str(out)]) == 0
    assert out.with_suffix(".png").stat().st_size > 5000
    out.write_text(json.dumps({"device": "", "rows": [rows[0] | {"results": {}}]}))
    assert command.main(["plot", str(out)]) == 2


def test_from_a_bundle(compiled, tmp_path):
    """In a Python that has PyTorch, but neither TVM nor ttsnn."""
    venv.create(tmp_path / "venv", with_pip=False)
    packages = Path(torch.__file__).parents[1]
    site = next((tmp_path / "venv").glob("lib/python*/site-packages"))
    for name in TORCH:
        if (packages / name).exists():
            (site / name).symlink_to(packages / name)
    python = str(tmp_path / "venv" / "bin" / "python")
    absent = "import importlib.util as u; print([*map(u.find_spec, ('tvm', 'ttsnn'))])"
    told = subprocess.run([python, "-c", absent], capture_output=True, text=True, check=True)
    assert told.stdout == "[None, None]\n"
    code = compiled / f"{NAMES[1]}.ttsnn"
    write_bundle(tmp_path / "b", {"net": BundledNet(code, [], [], 1.0)}, extra=[ENTRY, compiled])
    (tmp_path / "b" / compiled.name).rename(tmp_path / "b" / "cases")
    words = [python, str(tmp_path / "b" / "gpu"), "run", "--device", "cpu", "--only", "train*"]
    words += ["--contenders", "ttsnn,dense_folded", "--repeats", "1", "--seconds", "0"]
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    (row,) = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert row["check"]["ok"]
    ratio = row["results"]["ttsnn"]["ms"] / row["results"]["dense_folded"]["ms"]
    claim = f"a step takes {ratio:.1%} of the dense network's in PyTorch (dense_folded)"
    assert claim in result.stdout


def test_a_wrong_result_is_told(copied, tmp_path, capfd):
    check = copied / f"{NAMES[1]}.check.safetensors"
    stored = load_file(check)
    stored["spikes.000"] = stored["spikes.000"] ^ np.uint8(1 << 7)
    stored["out.000"] = stored["out.000"] + np.abs(stored["out.000"]).max()
    save_file(stored, check)
    out = tmp_path / "out.json"
    assert run(copied, out, "--contenders", "ttsnn", "--only", "inference*fp32") == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["check"]["ok"] is False
    assert row["check"]["flipped_spikes"] == len(stored["spikes.000"])
    assert "ttsnn" in row["results"]
    assert "check: WRONG" in capfd.readouterr().out


def test_a_process_that_dies_leaves_the_rest(compiled, tmp_path, capfd, monkeypatch):
    """A peer that kills its process, as a broken device does, is an error of its own."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name.startswith('torch._inductor'):\n"
        "            os.abort()\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    out = tmp_path / "out.json"
    words = ["--contenders", "dense_folded,inductor,eager_folded", "--only", "*graph"]
    assert run(compiled, out, *words) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert "signal 6" in row["errors"]["inductor"]
    assert {"dense_folded", "eager_folded"} == set(row["results"])
    assert "inductor: its process ended" in capfd.readouterr().out


def test_time_limits(compiled, tmp_path, capfd):
    out = tmp_path / "out.json"
    words = ["--contenders", "dense_folded", "--only", "*graph"]
    assert run(compiled, out, *words, "--contender-seconds", "0.001") == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["errors"]["dense_folded"].startswith("TimeoutError: not done after")
    assert run(compiled, out, *words, "--minutes", "0") == 1
    assert json.loads(out.read_text())["left"] == [NAMES[0]]
    assert "not run, time was over" in capfd.readouterr().out


def test_what_is_refused(copied, tmp_path, capsys):
    def refused(*words: str) -> str:
        assert command.main(["run", *map(str, words)]) == 2
        return capsys.readouterr().err

    if not torch.cuda.is_available():
        assert "sees no GPU" in refused(copied)
    cpu = ["--device", "cpu"]
    assert "cases.json is missing" in refused(tmp_path, *cpu)
    assert "no case whose name fits 'vgg'" in refused(copied, "--only", "vgg", *cpu)
    assert "its folder does not exist" in refused(copied, "--out", tmp_path / "a" / "b", *cpu)
    weights = copied / store.FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert f"{weights}: damaged" in refused(copied, *cpu)
    weights.unlink()
    assert "is missing; copy the folder again" in refused(copied, *cpu)
    weights.write_bytes(whole)
    artifact = copied / f"{NAMES[0]}.ttsnn"
    artifact.write_bytes(artifact.read_bytes()[:-2000])
    assert "damaged or truncated" in refused(copied, *cpu)
    words = ["--plan", "nothing", "--modes", "ptt", "--networks", "spiking_mlp"]
    assert command.main(["compile", str(tmp_path / "c"), *words]) == 2
    assert "gpu compile: " in capsys.readouterr().err
    (copied / "cases.json").write_text("[{}]")
    assert "is damaged" in refused(copied, *cpu)


def test_the_most_important_cases_come_first():
    first = sorted(cases.first_cases(), key=cases.importance)
    assert first[0] == cases.Case("train", "ms_resnet34", "ptt", 128, 6, "fp32", "ncaltech101")
    assert all(c.graph and c.batch == 1 for c in first[1:3])
    assert {c.network for c in first[1:3]} == {"ms_resnet18", "ms_resnet34"}


def test_tensors_are_stored_once(tmp_path):
    first = store.Store(tmp_path)
    a, b = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2)
    names = first.add({"a": a, "b": b, "again": a.copy(), "scalar": np.float32(2)})
    assert len(set(names.values())) == 3
    first.save()
    found = store.Store(tmp_path).get(names)
    for name, value in (("a", a), ("b", b), ("again", a), ("scalar", np.float32(2))):
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(KeyError):
        first.get({"a": "none"})


def test_summary_of_a_claim():
    case = cases.first_cases()[0]
    row = vars(case) | {"results": {}, "errors": {"inductor": "OutOfMemoryError: full"}}
    row["results"] = {"ttsnn": {"ms": 80.0, "spread": 1.0}, "dense_folded": {"ms": 100.0}}
    text = summary.text({"device": "", "torch": "", "rows": [row, row | {"results": {}}]})
    assert "80.0% of the dense network's in PyTorch (dense_folded), within 82.3%" in text
    assert f"inductor: OutOfMemoryError: full ({case.name}, {case.name})" in text


def test_flipped_bits_are_counted():
    fired = np.random.default_rng(0).random((3, 5, 7)) < 0.3
    other = fired.copy()
    other[1, 2, 3:5] ^= True
    assert agreement._flips(fired, np.packbits(other)) == 2


def test_roofline(capsys):
    small = ["--network", "spiking_mlp", "--mode", "dense", "--batch", "3", "--timesteps", "2"]
    assert command.main(["roofline", *small, "--dataset", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    total = [float(v) for v in lines[-1].split()[1:]]
    assert lines[-1].startswith("all")
    assert total[0] == sum(int(line.split()[1]) for line in lines[2:-1]) > 10
    assert total[3] + 0.005 >= total[0] * 2e-6 * 1e3  # printed with two digits
