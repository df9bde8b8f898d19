"""What the commands print and write, with PyTorch and NumPy as oracles."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import ttsnn
from ttsnn import models
from ttsnn.cli import main

MLP = ("spiking_mlp", "--dataset", "digits", "--T", "2")


def _json(capfd, *words: str, code: int = 0) -> dict:
    got = main([*map(str, words), "--json"])
    out, err = capfd.readouterr()
    assert got == code, err
    return json.loads(out)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory) -> dict[str, str]:
    """The MLP on digits, T = 2: plain with an open batch, and with spikes at batch 16."""
    folder = tmp_path_factory.mktemp("artifacts")
    out = {"open": str(folder / "open.ttsnn"), "spikes": str(folder / "spikes.ttsnn")}
    assert main(["compile", *MLP, "--dynamic-batch", "-o", out["open"], "--json"]) == 0
    words = ["compile", *MLP, "--batch", "16", "--record-spikes", "-o", out["spikes"], "--json"]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def network():
    """The same network in PyTorch."""
    return models.create("spiking_mlp", "digits", T=2)


def test_compile(capfd, tmp_path):
    path = tmp_path / "net.ttsnn"
    data = _json(capfd, "compile", *MLP, "--plan", "rank=2", "--batch", "3", "-o", path)
    assert data["artifact_bytes"] == path.stat().st_size
    assert data["inputs"] == [{"name": "x", "shape": [3, 1, 8, 8], "dtype": "float32"}]
    assert data["outputs"][0]["shape"] == [3, 10]
    assert data["plan"]["rule"] == "rank=2"
    assert data["kernels"] > 0
    assert data["fallback_kernels"] == []
    assert main(["compile", *MLP, "-o", str(path)]) == 0
    assert "MB" in capfd.readouterr().out


def test_compile_with_calibration_data(capfd, tmp_path):
    path = tmp_path / "net.ttsnn"
    np.save(tmp_path / "data.npy", np.full((4, 1, 8, 8), 0.5, "float32"))
    for data in ("example", tmp_path / "data.npy"):
        _json(capfd, "compile", *MLP, "--calibration", data, "-o", path)
        rates = ttsnn.load(path).manifest.info["firing_rates"]
        assert rates
        assert all(0 <= rate <= 1 for rate in rates.values())


def test_a_training_step_takes_no_calibration(capfd):
    assert main(["compare", *MLP, "--phase", "train", "--calibrate", "--against", "none"]) == 2
    assert "calibration is for inference" in capfd.readouterr().err


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_run_on_files(capfd, tmp_path, artifacts, network, suffix):
    x = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / f"y.{suffix}"
    data = _json(capfd, "run", artifacts["open"], "--input", tmp_path / "x.npy", "-o", out)
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    if suffix == "npy":
        y = np.load(out)
    elif suffix == "npz":
        y = np.load(out)["output"]
    else:
        from safetensors.numpy import load_file

        y = load_file(out)["output"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert data["top1"] == expected.argmax(1).tolist()
    assert data["outputs"]["output"] == {"shape": [5, 10], "dtype": "float32"}


def test_run_reads_named_arrays(capfd, tmp_path, artifacts):
    x = np.zeros((1, 1, 8, 8), "float32")
    np.savez(tmp_path / "x.npz", anything=x)
    from safetensors.numpy import save_file

    save_file({"x": x}, tmp_path / "x.safetensors")
    a, b = (
        _json(capfd, "run", artifacts["open"], "--input", tmp_path / f"x.{s}")["values"]
        for s in ("npz", "safetensors")
    )
    assert a == b


def test_run_on_samples_and_random_input(capfd, artifacts, network):
    data = _json(capfd, "run", artifacts["open"], "--dataset", "digits", "--samples", "3,7")
    x, y = models.data.load_dataset("digits", split="test").batch([3, 7])
    assert data["labels"] == y.tolist()
    with torch.no_grad():
        assert data["top1"] == network(x).argmax(1).tolist()
    data = _json(capfd, "run", artifacts["spikes"], "--threads", "1")
    assert all(0 <= r <= 1 for r in data["firing_rates"].values())
    assert len(data["firing_rates"]) == 2
    assert main(["run", artifacts["spikes"]]) == 0
    assert "top-1" in capfd.readouterr().out


def test_eval_compiled_and_in_pytorch(capfd, artifacts, network):
    """Both engines and a count by hand; the last batch is smaller than the artifact's 16."""
    dataset = models.data.load_dataset("digits", split="test")
    x, y = dataset.batch(range(40))
    logits, spikes = models.spikes_of(network, x)
    accuracy = float((logits.argmax(1) == y).float().mean())
    rates = [float(s.mean()) for _, s in spikes]
    words = ("--dataset", "digits", "--limit", "40")
    for run in (
        ("eval", artifacts["spikes"], *words),
        ("eval", *MLP, "--limit", "40", "--batch", "16"),
        ("eval", *MLP, "--limit", "40", "--batch", "8", "--compiled"),
    ):
        data = _json(capfd, *run)
        assert data["samples"] == 40
        assert data["accuracy"] == pytest.approx(accuracy)
        assert list(data["firing_rates"].values()) == pytest.approx(rates, abs=1e-4)
    data = _json(capfd, "eval", artifacts["open"], *words)
    assert data["accuracy"] == pytest.approx(accuracy)
    assert data["firing_rates"] == {}
    assert main(["eval", *MLP, "--limit", "8"]) == 0
    assert "% of 8 samples" in capfd.readouterr().out


def test_inspect(capfd, artifacts):
    data = _json(capfd, "inspect", artifacts["spikes"], "--repeats", "3", "--threads", "1")
    assert data["batch"] == 16
    assert data["fallback_kernels"] == []
    shares = [k["share"] for k in data["kernels"]] + [data["vm_share"]]
    assert sum(shares) == pytest.approx(1.0)
    assert all(k["rule"] and k["calls"] > 0 for k in data["kernels"])
    named = {name for k in data["kernels"] for name in k["layers"]}
    assert any("fc" in n or "hidden" in n for n in named)
    assert main(["inspect", *MLP, "--repeats", "1"]) == 0
    assert "GFLOP/s" in capfd.readouterr().out


def test_inspect_warns_of_fallbacks(capfd, tmp_path, artifacts):
    from dataclasses import replace

    from ttsnn.artifact import read_artifact, write_artifact

    a = read_artifact(artifacts["open"])
    first, *others = a.manifest.kernels
    kernels = (replace(first, rule="fallback", scheduled=False), *others)
    path = tmp_path / "slow.ttsnn"
    write_artifact(path, replace(a.manifest, kernels=kernels), a.params, a.library)
    assert main(["inspect", str(path), "--json"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["fallback_kernels"] == [first.name]
    assert "WARNING" in err
    assert first.name in err


def test_targets(capfd):
    data = _json(capfd, "targets")
    assert "cpu" in [t["name"] for t in data["targets"]]
    assert main(["targets"]) == 0
    assert "cpu" in capfd.readouterr().out


def test_doctor(capfd):
    data = _json(capfd, "doctor")
    states = {c["name"]: c["state"] for c in data["checks"]}
    assert data["ok"] is True
    for name in ("apache-tvm-ffi", "linker", "compile and link", "runtime library alone"):
        assert states[name] == "ok"


def test_doctor_names_the_wrong_ffi(capfd, monkeypatch):
    from ttsnn.cli import doctor

    monkeypatch.setattr(
        doctor, "_installed", lambda p: "0.1.15.post2" if p == "apache-tvm-ffi" else "1.0"
    )
    monkeypatch.setattr(doctor, "_end_to_end", list)
    assert main(["doctor", "--json"]) == 1
    data = json.loads(capfd.readouterr().out)
    assert data["failed"] == ["apache-tvm-ffi"]


def test_run_needs_no_compiler(tmp_path, artifacts):
    """`ttsnn run` of an artifact, in a process with TVM's runtime library and no PyTorch."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'torch':\n"
        "            raise ImportError('no torch here')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from ttsnn.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "assert 'libtvm_compiler' not in open('/proc/self/maps').read()\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "run", artifacts["open"], "--json"],
        capture_output=True,
        text=True,
        env={"TVM_USE_RUNTIME_LIB": "1", "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"]["output"]["shape"] == [1, 10]


def test_dump_ir(tmp_path):
    folder = tmp_path / "ir"
    words = ["compile", *MLP, "--dump-ir", str(folder), "-o", str(tmp_path / "n.ttsnn"), "--json"]
    assert main(words) == 0
    files = sorted(p.name for p in folder.iterdir())
    assert len(files) > 5
    assert [f[:3] for f in files] == [f"{i + 1:03d}" for i in range(len(files))]
    assert any("FoldBatchNorm" in f or "ScheduleContractions" in f for f in files)
    assert "def main" in (folder / files[0]).read_text()
