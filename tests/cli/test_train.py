"""``ttsnn train``: a run, killed and resumed, and bad input."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from ttsnn.cli import main

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


def killed(folder, at):
    """Start or continue the run in a process, and kill it once it has logged ``at`` updates."""
    words = [sys.executable, "-m", "ttsnn", "train", *_WORDS, "-o", str(folder), "--resume"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log, end = folder / "log.jsonl", time.monotonic() + 240
    while process.poll() is None and time.monotonic() < end:
        if log.is_file() and log.read_bytes().count(b"\n") >= at:
            os.kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005)
    process.stderr.close()
    return process.wait()


def kills(tmp_path, capsys, count):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert main(["train", *_WORDS, "-o", str(whole)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["steps"] == _STEPS
    broken.mkdir()
    rng = random.Random(count)
    codes = [killed(broken, at) for at in sorted(rng.sample(range(1, _STEPS - 2), count))]
    assert -signal.SIGKILL in codes
    assert main(["train", *_WORDS, "-o", str(broken), "--resume"]) == 0
    assert kept(broken) == kept(whole)


def test_a_killed_run_ends_in_the_same_bits(tmp_path, capsys):
    kills(tmp_path, capsys, 1)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_in_the_same_bits(tmp_path, capsys):
    kills(tmp_path, capsys, 10)


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
    index.write_text("{")
    assert main(["train", *short, *run, "--resume"]) == 2
    assert "damaged" in capsys.readouterr().err


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
