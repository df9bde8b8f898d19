"""Bundles run in a Python without TVM, and say what is wrong with a machine."""

from __future__ import annotations

import ctypes.util
import json
import shutil
import subprocess
import venv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import ttsnn
from ttsnn import models
from ttsnn.artifact import read_artifact, write_artifact
from ttsnn.cli import main
from ttsnn.cuda.toolkit import find_nvcc
from ttsnn.errors import ArtifactError
from ttsnn.passes.training import SGD, CrossEntropy
from ttsnn.runtime.bundle import BundledNet, write_bundle
from ttsnn.runtime.step_file import load_step, save_step
from ttsnn.runtime.training.network import network_of
from ttsnn.runtime.training.step import TrainStep


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """A Python that sees NumPy and nothing else of this environment's packages."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    packages = Path(np.__file__).parents[1]
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "numpy").symlink_to(packages / "numpy")
    if (packages / "numpy.libs").exists():
        (site / "numpy.libs").symlink_to(packages / "numpy.libs")
    return folder / "bin" / "python"


def mlp() -> models.SpikingMLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.SpikingMLP((1, 6, 6), 3, 2, hidden=(7,))


@pytest.fixture(scope="module")
def step_file(tmp_path_factory) -> tuple[Path, list[np.ndarray], list[np.ndarray]]:
    """A training step's file, arguments, and what :class:`TrainStep` says of them."""
    x = np.random.default_rng(0).standard_normal((4, 1, 6, 6)).astype(np.float32)
    labels = np.array([0, 2, 1, 1])
    program = network_of(mlp(), torch.from_numpy(x)).program(torch.from_numpy(x))
    step = TrainStep(program, CrossEntropy(), SGD(momentum=0.9))
    _, result = step(step.state(), x, labels, 0.1)
    path = tmp_path_factory.mktemp("step") / "step.ttsnn"
    save_step(step, path, model="mlp")
    return path, [x, labels, np.asarray(0.1)], [np.float32(result.loss), result.logits]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, step_file) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    x = np.random.default_rng(0).standard_normal((1, 1, 6, 6)).astype(np.float32)
    nets = {}
    for target in ("cpu", "cuda-emulated"):
        path = folder / f"{target}.ttsnn"
        net = ttsnn.compile(mlp(), torch.from_numpy(x), target=target, out=path)
        nets[target] = BundledNet(path, [x], [net(x)], 1e-5)
    path, arguments, results = step_file
    nets["step"] = BundledNet(path, arguments, results, 1e-5)
    nets["wrong"] = BundledNet(folder / "cpu.ttsnn", [x], [net(x) + 1], 1e-5)
    size = write_bundle(folder / "out", nets)
    assert size < 30e6
    return folder / "out"


def run(python: Path, bundle: Path, *words: str) -> subprocess.CompletedProcess:
    command = [str(python), str(bundle / "ttsnn_bundle.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_networks_run_without_tvm(python: Path, bundle: Path) -> None:
    assert subprocess.run([str(python), "-c", "import tvm"], capture_output=True).returncode
    result = run(python, bundle, "--json", "cpu", "cuda-emulated", "step")
    assert result.returncode == 0, result.stdout + result.stderr
    entries = json.loads(result.stdout)["results"]
    assert [e["target"] for e in entries] == ["cpu", "cuda-emulated", "cpu"]
    assert all(e["ok"] for e in entries)
    result = run(python, bundle, "wrong")
    assert result.returncode == 1
    assert "WRONG" in result.stdout


def test_other_python_versions_and_names(python: Path, bundle: Path, tmp_path: Path) -> None:
    assert run(python, bundle, "nothing").returncode == 2
    data = json.loads((bundle / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps({**data, "python": ["3.2"]}))
    (tmp_path / "ttsnn_bundle.py").write_text((bundle / "ttsnn_bundle.py").read_text())
    result = run(python, tmp_path)
    assert result.returncode == 2
    assert "this bundle is for Python 3.2, not" in result.stderr
    (tmp_path / "bundle.json").write_text("{")
    assert "bundle.json: missing or damaged" in refusal(run(python, tmp_path))


def refusal(result: subprocess.CompletedProcess) -> str:
    """The one line that it says before it ends with 2."""
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = (result.stdout + result.stderr).splitlines()
    return line


@pytest.mark.parametrize("part", ["lib/tvm/lib/libtvm_runtime.so", "nets/cpu.ttsnn"])
def test_files_that_end_early(python: Path, bundle: Path, tmp_path: Path, part: str) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    data = (copy / part).read_bytes()
    (copy / part).write_bytes(data[:-1000])
    assert f"{part}: missing or damaged" in refusal(run(python, copy, "cpu"))
    (copy / part).unlink()
    assert f"{part}: missing or damaged" in refusal(run(python, copy, "cpu"))


def test_files_that_changed(python: Path, bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "b"))
    for name in ("cpu.ttsnn", "step.check.safetensors"):
        size = (copy / "nets" / name).stat().st_size
        (copy / "nets" / name).write_bytes(bytes(size))
        line = refusal(run(python, copy, name.partition(".")[0]))
        assert f"{name}: " in line
        assert "damaged" in line


def test_no_driver(python: Path, bundle: Path, tmp_path: Path) -> None:
    if ctypes.util.find_library("cuda"):
        pytest.skip("there is a driver")
    artifact = read_artifact(bundle / "nets" / "cpu.ttsnn")
    target = {**artifact.manifest.target, "name": "cuda", "archs": ["sm_90"]}
    manifest = replace(artifact.manifest, target=target)
    path = tmp_path / "cuda.ttsnn"
    write_artifact(path, manifest, artifact.params, artifact.library)
    write_bundle(tmp_path / "c", {"net": BundledNet(path, [], [], 1.0)})
    assert "no NVIDIA driver (libcuda.so.1)" in refusal(run(python, tmp_path / "c"))


def test_steps_go_on_from_each_other(step_file) -> None:
    path, (x, labels, lr), (loss, _) = step_file
    step = load_step(path)
    first, logits = step(torch.from_numpy(x), labels, lr)
    assert isinstance(logits, torch.Tensor)
    assert float(first) == pytest.approx(float(loss), rel=1e-6)
    assert float(step(x, labels, lr)[0]) < float(loss)
    assert step.updates == 2
    step.reset()
    assert float(step(x, labels, lr)[0]) == pytest.approx(float(loss), rel=1e-6)
    with pytest.raises(ArtifactError, match="no such file"):
        load_step(path.with_name("absent.ttsnn"))


def test_command(python: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = ["spiking_mlp", "--image-size", "8", "--in-channels", "1"]
    assert (
        main(["export", *small, "--bundle", str(tmp_path / "b"), "--add", __file__, "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["target"] == "cpu"
    assert (tmp_path / "b" / Path(__file__).name).exists()
    assert run(python, tmp_path / "b").returncode == 0
    assert main(["export", *small, "--bundle", str(tmp_path / "b")]) == 2
    assert "it exists; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["cuda-emulated", "cuda"])
def test_command_with_a_training_step(
    python: Path, tmp_path: Path, capsys: pytest.CaptureFixture, target: str
) -> None:
    if target == "cuda" and find_nvcc() is None:
        pytest.skip("no nvcc")
    small = ["spiking_mlp", "--image-size", "8", "--in-channels", "1", "--batch", "2"]
    folder = tmp_path / "b"
    assert main(["export", *small, "--train", "--target", target, "--bundle", str(folder)]) == 0
    entries = json.loads((folder / "bundle.json").read_text())["nets"]
    assert {k: v["kind"] for k, v in entries.items()} == {
        "spiking_mlp": "net",
        "spiking_mlp_step": "step",
    }
    assert {v["target"] for v in entries.values()} == {target}
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 40 * 2**20
    if target == "cuda-emulated":
        result = run(python, folder, "--json")
        assert result.returncode == 0, result.stdout + result.stderr
        errors = [e["max_rel_error"] for e in json.loads(result.stdout)["results"]]
        assert max(errors) < 1e-4
        stored = load_file(folder / "nets" / "spiking_mlp_step.check.safetensors")
        losses = [stored["out.000"], stored["out.002"]]
        assert losses[0] - losses[1] > 1e-3  # so a wrong gradient would show
    capsys.readouterr()
    wrong = [*small, "--train", "--dynamic-batch", "--bundle", str(tmp_path / "c")]
    assert main(["export", *wrong]) == 2
    assert "for one batch size" in capsys.readouterr().err
