"""Bad input: one clear message, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from ttsnn.cli import COMMANDS, main


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test runs in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def compiled(tmp_path_factory) -> str:
    """A small artifact with a fixed batch of 2."""
    path = tmp_path_factory.mktemp("compiled") / "mlp.ttsnn"
    words = ["compile", "spiking_mlp", "--dataset", "digits", "--T", "2", "--batch", "2"]
    code = main([*words, "--json", "-o", str(path)])
    assert code == 0
    return str(path)


def _fails(capfd, *words: str) -> str:
    """Run a command line that must fail with exit code 2; returns its message."""
    before = sorted(os.listdir())
    code = main([str(w) for w in words])
    out, err = capfd.readouterr()
    assert code == 2, (out, err)
    assert "Traceback" not in err + out
    assert out == ""
    assert sorted(os.listdir()) == before, "something was left behind"
    return err


MLP = ("spiking_mlp", "--dataset", "digits", "--T", "2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compile", "ms_resnet99"), "unknown model 'ms_resnet99'"),
        (("compile", "no_package:net"), "cannot import 'no_package'"),
        (("compile", "net.onnx"), "no such file"),
        (("compile", "net.pt2"), "no such file"),
        (("compile", *MLP, "--weights", "w.pt"), "no such weights file"),
        (("compile", *MLP, "--target", "abacus"), "unknown target 'abacus'"),
        (("compile", *MLP, "--target", "cpu:speed=9"), "no option 'speed'"),
        (("compile", *MLP, "--plan", "magic"), "magic"),
        (("compile", *MLP, "--plan", "plan.json"), "plan.json"),
        (("compile", *MLP, "--plan", "rank=0"), "rank"),
        (("compile", *MLP, "--input-shape", "a,b"), "input shape 'a,b'"),
        (("compile", *MLP, "-o", "no/such/net.ttsnn"), "does not exist"),
        (("compile", "spiking_mlp", "--dataset", "mnist"), "unknown dataset 'mnist'"),
        (("compare", *MLP, "--against", "magic"), "unknown peer 'magic'"),
        (("compare", *MLP, "--real", "--dataset", "cifar10"), "cifar10"),
        (("run", "net.ttsnn"), "no such file"),
        (("inspect", "net.ttsnn"), "no such file"),
        (("eval", "net.ttsnn", "--dataset", "digits"), "no such file"),
        (("eval", *MLP[:1], "--dataset", "cifar10"), "--data DIR"),
    ],
)
def test_bad_requests(capfd, words, message):
    assert message in _fails(capfd, *words)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("nothing",),
        ("compile",),
        ("compile", "spiking_mlp", "--batch", "0"),
        ("compile", "spiking_mlp", "--mode", "xtt"),
        ("compare", "spiking_mlp", "--dtype", "float16"),
    ],
)
def test_bad_usage(capfd, words):
    code = main(list(words))
    out, err = capfd.readouterr()
    assert code == 2
    assert "usage: ttsnn" in out + err
    assert "Traceback" not in out + err


def test_plan_with_a_layer_that_is_not_there(capfd, folder):
    plan = (
        '{"schema": "ttsnn.plan", "version": 1, "rule": "", "T": null, "notes": [], "layers": '
        '{"hidden.7.fc": {"kind": "linear", "mode": "tt", "ranks": [2], '
        '"out_factors": [8, 8], "in_factors": [8, 8]}}}'
    )
    (folder / "plan.json").write_text(plan)
    message = _fails(capfd, "compile", *MLP, "--plan", "plan.json")
    assert "hidden.7.fc" in message


def test_unsupported_operator(capfd, folder, monkeypatch):
    (folder / "fft_net.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.fft.fft(x).real.sum((2, 3))\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    message = _fails(capfd, "compile", "fft_net:Net", "--input-shape", "N,3,4,4")
    assert "fft" in message


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 1, 8, 9), "float32"), "must be float32 [2, 1, 8, 8], got shape"),
        (np.zeros((3, 1, 8, 8), "float32"), "got shape [3, 1, 8, 8]"),
        (np.zeros((2, 1, 8, 8)), "got dtype float64"),
        (np.zeros((2, 1, 8, 8), "int32"), "got dtype int32"),
    ],
)
def test_wrong_arrays(capfd, folder, compiled, array, message):
    np.save("x.npy", array)
    assert message in _fails(capfd, "run", compiled, "--input", "x.npy", "-o", "y.npy")


def test_bad_input_files(capfd, folder, compiled):
    np.save("x.npy", np.zeros((2, 1, 8, 8), "float32"))
    data = (folder / "x.npy").read_bytes()
    (folder / "cut.npy").write_bytes(data[: len(data) // 2])
    np.save("objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez("named.npz", a=np.zeros(1), b=np.zeros(1))
    (folder / "cut.safetensors").write_bytes(b"123")
    for name, message in [
        ("none.npy", "no such file"),
        ("x.txt", "read from .npy"),
        ("cut.npy", "truncated"),
        ("objects.npy", "cannot be read"),
        ("named.npz", "it holds a, b"),
        ("cut.safetensors", "cannot be read"),
    ]:
        assert message in _fails(capfd, "run", compiled, "--input", name)
    for out, message in [("y.txt", "written as .npy"), ("no/y.npy", "does not exist")]:
        assert message in _fails(capfd, "run", compiled, "--input", "x.npy", "-o", out)
    message = _fails(capfd, "run", compiled, "--dataset", "digits", "--samples", "0,100000")
    assert "not 100000" in message
    assert "indices" in _fails(capfd, "run", compiled, "--samples", "first")


def test_damaged_artifacts(capfd, folder, compiled):
    with open(compiled, "rb") as file:
        data = file.read()
    (folder / "cut.ttsnn").write_bytes(data[: len(data) // 2])
    (folder / "text.ttsnn").write_text("hello")
    with zipfile.ZipFile(compiled) as source, zipfile.ZipFile("tampered.ttsnn", "w") as copy:
        for name in source.namelist():
            content = source.read(name)
            copy.writestr(name, content[:-1] + b"!" if name.startswith("params") else content)
    for name, message in [
        ("cut.ttsnn", "truncated"),
        ("text.ttsnn", "not a compiled network"),
        ("tampered.ttsnn", "params.safetensors is not what was written"),
    ]:
        for command in ("run", "inspect", "eval"):
            assert message in _fails(capfd, command, name, "--dataset", "digits")
    assert "compiled already" in _fails(capfd, "compile", compiled)


def test_artifact_is_checked_for_this_cpu(capfd, folder, compiled):
    from dataclasses import replace

    from ttsnn.artifact import read_artifact, write_artifact

    a = read_artifact(compiled)
    target = {**a.manifest.target, "features": ["amx_of_2040"]}
    write_artifact("other.ttsnn", replace(a.manifest, target=target), a.params, a.library)
    assert "with amx_of_2040, which this one" in _fails(capfd, "run", "other.ttsnn")


def test_full_disk(folder, compiled):
    """The kernel refuses to let the file grow: an old file stays, nothing else does."""
    (folder / "net.ttsnn").write_bytes(b"older")
    code = (
        "import resource, sys\n"
        "import ttsnn.cli, ttsnn.artifact as a\n"
        "write = a.write_artifact\n"
        "def limited(*args):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "    return write(*args)\n"
        "import ttsnn.driver\n"
        "ttsnn.driver.write_artifact = limited\n"
        "sys.exit(ttsnn.cli.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "compile", *MLP, "-o", "net.ttsnn"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir() == ["net.ttsnn"]
    assert (folder / "net.ttsnn").read_bytes() == b"older"


def test_as_a_process(folder):
    """The installed module, as a user calls it."""
    done = subprocess.run(
        [sys.executable, "-m", "ttsnn", "run", "none.ttsnn"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip() == "ttsnn: none.ttsnn: no such file"
    assert done.stdout == ""


def test_interrupt(monkeypatch, capfd):
    from ttsnn.cli import doctor

    def stop(_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "run", stop)
    assert main(["doctor"]) == 130
    assert capfd.readouterr().err == "ttsnn: interrupted\n"


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help_ends_with_an_example(command, capfd):
    assert main([command, "--help"]) == 0
    out = capfd.readouterr().out
    assert f"\n  ttsnn {command}" in out.partition("example:")[2]
    assert "--json" in out


def test_help_and_version(capfd):
    assert main(["--help"]) == 0
    out = capfd.readouterr().out
    assert set(COMMANDS) <= set(out.split())
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == "ttsnn 0.1.0\n"


def test_bugs_are_called_bugs(monkeypatch, capfd):
    """An error that nobody foresaw: no traceback, unless it is asked for."""
    from ttsnn.cli import doctor

    def broken(_args):
        raise RuntimeError("boom\nfrom somewhere")

    monkeypatch.setattr(doctor, "run", broken)
    assert main(["doctor"]) == 2
    err = capfd.readouterr().err
    assert "internal error, RuntimeError: boom\n" in err
    assert "TTSNN_DEBUG=1" in err
    monkeypatch.setenv("TTSNN_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        main(["doctor"])
