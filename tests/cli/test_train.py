"""``ttsnn train``: a run, killed and resumed, and bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ttsnn.cli import main
from ttsnn.runtime.training.checkpoint import INDEX, Checkpoint, write_checkpoint

_WORDS = [
    *("spiking_mlp", "--dataset", "digits", "--T", "2", "--limit", "160", "--batch", "16"),
    *("--epochs", "4", "--checkpoint-every", "3", "--threads", "1", "--no-eval"),
    *("--optimizer", "adamw", "--json"),
]
_STEPS = 40


def kept(folder):
    """What a run leaves that must not depend on interruptions."""
    files = {
        p.name: p.read_bytes() for p in folder.glob("*") if p.suffix in (".json", ".safetensors")
    }
    lines = [json.loads(line) for line in (folder / "log.jsonl").open()]
    return files, [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


_CONVOLUTIONAL = [
    *("killnets:build", "--dataset", "digits", "--T", "2", "--limit", "96", "--batch", "16"),
    *("--plan", "rank=2", "--mode", "ptt", "--init", "fresh", "--epochs", "5"),
    *("--checkpoint-every", "4", "--threads", "1", "--json"),
]
_NETS = """
from ttsnn import models

def build(T=2, num_classes=10):
    return models.MSResNet((1,), (1, 8, 8), num_classes, T, width=6)
"""


def killed(folder, at, words):
    """Start or continue the run in a process, and kill it once it has logged ``at`` updates."""
    words = [sys.executable, "-m", "ttsnn", "train", *words, "-o", str(folder), "--resume"]
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder.parent
    )
    log, end = folder / "log.jsonl", time.monotonic() + 240
    while process.poll() is None and time.monotonic() < end:
        if log.is_file() and log.read_bytes().count(b"\n") >= at:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    process.stderr.close()
    return process.wait()


def kills(tmp_path, capsys, count, words=_WORDS, steps=_STEPS):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", *words, "-o", str(whole)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == steps
    broken.mkdir()
    rng = random.Random(count)
    places = sorted(rng.sample(range(1, steps - 2), count))
    codes = [killed(broken, at, words) for at in places]
    assert codes.count(-signal.SIGKILL) >= count - 1
    assert main(["train", *words, "-o", str(broken), "--resume"]) == 0
    assert kept(broken) == kept(whole)


def test_a_killed_run_ends_in_the_same_bits(tmp_path, capsys):
    kills(tmp_path, capsys, 1)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_in_the_same_bits(tmp_path, capsys):
    kills(tmp_path, capsys, 10)


@pytest.mark.slow
def test_a_convolutional_run_with_tensor_trains_killed_ten_times(tmp_path, capsys, monkeypatch):
    (tmp_path / "killnets.py").write_text(_NETS)
    monkeypatch.syspath_prepend(str(tmp_path))
    kills(tmp_path, capsys, 10, _CONVOLUTIONAL, 30)
    assert (tmp_path / "whole" / "best.safetensors").is_file()


def test_bad_input_ends_with_a_message(tmp_path, capsys):
    run = ["-o", str(tmp_path / "run")]
    short = ["spiking_mlp", "--dataset", "digits", "--T", "1", "--epochs", "1", "--no-eval"]
    short += ["--limit", "32", "--batch", "32"]
    assert main(["train", *short, *run]) == 0
    capsys.readouterr()
    index = tmp_path / "run" / "checkpoint.json"
    for words, message in (
        ([*short, *run], "holds a run already"),
        ([*short, *run, "--resume", "--seed", "4"], "another run: seed is 0 there and 4 here"),
        ([*short, *run, "--resume", "--dataset", "cifar10"], "give the folder"),
        ([*short, "--resume"], "--resume needs"),
        ([*short, "--limit", "5"], "fewer than one batch"),
        ([*short, "--nesterov", "--momentum", "0"], "nesterov"),
        ([*short, "--loss", "tet", "--tet-lambda", "2"], "lamb"),
    ):
        before = index.read_bytes()
        assert main(["train", *words]) == 2, words
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert index.read_bytes() == before
    for words, message in (
        (["--num-classes", "7"], "label 9 of sample 6 is out of range; the network has 7 classes"),
        (["--resume", *run, "--plan", "rank=1"], "checkpoint of another"),
        (["--lr", "1e300", "--limit", "64"], "try a smaller lr"),
    ):
        before = {p.name: p.read_bytes() for p in index.parent.iterdir()}
        assert main(["train", *short, *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        assert {p.name: p.read_bytes() for p in index.parent.iterdir()} == before


def test_a_damaged_checkpoint_is_refused_before_anything_is_compiled(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    write_checkpoint(run, Checkpoint(3, {"a": np.ones(4)}, {}, {}, {}))
    index, tensors = run / INDEX, run / "step-00000003.safetensors"
    words = ["spiking_mlp", "--dataset", "digits", "--no-eval", "-o", str(run), "--resume"]
    flipped = bytearray(tensors.read_bytes())
    flipped[-1] ^= 1
    for file, content, message in (
        (index, index.read_bytes()[:-20], "damaged"),
        (index, b"{}", "damaged"),
        (tensors, bytes(flipped), "are not the"),
        (tensors, tensors.read_bytes()[:-1], "are not the"),
        (tensors, None, "cannot be read"),
    ):
        good = file.read_bytes()
        file.unlink() if content is None else file.write_bytes(content)
        start = time.perf_counter()
        assert main(["train", *words]) == 2
        assert time.perf_counter() - start < 5
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
        file.write_bytes(good)


def test_one_step_agrees_with_pytorch_and_is_timed(capsys):
    words = ["spiking_mlp", "--dataset", "digits", "--T", "1", "--dtype", "float64", "--batch", "4"]
    words += ["--phase", "train", "--against", "eager,onnxruntime", "--repeats", "1", "--json"]
    assert main(["compare", *words]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"]
    assert data["phase"] == "train"
    assert 0 < data["max_rel_error"] < 1e-9
    assert data["flipped_spikes"] == 0
    assert set(data["time_ms"]) == {"ttsnn", "eager"}
    assert set(data["peak_memory_mb"]) == {"ttsnn", "eager"}
    assert data["skipped"] == {"onnxruntime": "does not train"}
