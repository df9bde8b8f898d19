"""``ttsnn tune`` on a small network: records, resumption, what compile makes of them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import psutil
import pytest

import ttsnn
from ttsnn.cli import main
from ttsnn.errors import DataError, TuningError
from ttsnn.tuning import network as tuning

from .pretended import RECORDS, choice_in, lines, pretend
from .small_network import build

TRIALS = 14
SETTINGS = {"plan": "rank=3", "mode": "ptt", "batch": 2, "threads": 1}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A database after a few trials, and what the tuner said."""
    folder = tmp_path_factory.mktemp("records") / "db"
    states = []
    data = ttsnn.tune(build(), **SETTINGS, trials=TRIALS, database=folder, report=states.append)
    return folder, data, states


@pytest.fixture
def pretended(monkeypatch):
    """Tuning without machine code."""
    pretend(monkeypatch)


def copied(tuned, tmp_path):
    folder = tmp_path / "db"
    shutil.copytree(tuned[0], folder)
    return folder


def test_equal_layers_are_one_task_and_defaults_come_first(tuned):
    folder, data, states = tuned
    dense, layer, last = data["layers"]
    assert dense["layers"] == ["convs.0"]
    assert layer["layers"] == ["convs.1", "convs.2"]
    assert last["layers"] == ["convs.3"]
    assert data["trials"] >= TRIALS
    assert not data["interrupted"]
    assert all(entry["best_us"] <= entry["default_us"] for entry in data["layers"])
    total = dense["best_us"] + 2 * layer["best_us"] + last["best_us"]
    assert data["best_ms"] == pytest.approx(1e-3 * total)
    assert states[0]["trials"] == 0
    assert [s["trials"] for s in states] == sorted(s["trials"] for s in states)
    choices = [choice_in(line) for line in lines(folder)]
    assert layer["default_form"] in choices[1]
    assert len(set(choices)) > 6


def test_no_process_is_left(tuned):
    names = [" ".join(p.cmdline()) for p in psutil.Process().children(recursive=True)]
    assert not [n for n in names if "popen_worker" in n]


def test_a_spent_budget_measures_nothing(tuned, tmp_path):
    folder = copied(tuned, tmp_path)
    before = lines(folder)
    data = ttsnn.tune(build(), **SETTINGS, trials=TRIALS, database=folder)
    assert data["trials"] == len(before)
    assert data["new_trials"] == 0
    assert lines(folder) == before


def test_half_a_line_is_cut_off_and_tuning_goes_on(tuned, tmp_path, pretended):
    folder = copied(tuned, tmp_path)
    whole = (folder / RECORDS).read_bytes()
    (folder / RECORDS).write_bytes(whole[:-40])
    net = ttsnn.compile(build(), **compile_settings(folder))
    assert net.manifest.info["tuning"]
    count = len(lines(tuned[0]))
    data = ttsnn.tune(build(), **SETTINGS, trials=count + 1, database=folder)
    assert data["new_trials"] >= 2
    assert all(json.loads(line) for line in lines(folder))
    assert lines(folder)[: count - 1] == lines(tuned[0])[:-1]


def test_the_search_finds_what_is_faster(tmp_path, pretended):
    states = []
    settings = SETTINGS | {"trials": 60, "database": tmp_path, "report": states.append}
    data = ttsnn.tune(build(), **settings)
    known = [s for s in states if s["best_ms"] is not None]
    best = [s["best_ms"] for s in known]
    assert best == sorted(best, reverse=True)
    assert best[-1] < best[0] <= known[0]["default_ms"]
    assert data["best_ms"] == best[-1]
    for entry in data["layers"]:
        assert 1000 <= entry["best_us"] <= entry["default_us"]
    assert len({json.loads(choice_in(line)[1:-1])["form"] for line in lines(tmp_path)}) >= 5
    again = ttsnn.tune(build(), **settings | {"trials": 70})
    assert again["trials"] >= 70
    assert again["best_ms"] <= data["best_ms"]


def compile_settings(folder):
    return {"plan": "rank=3", "mode": "ptt", "batch": 2, "database": folder}


def test_compile_uses_records_and_is_reproducible(tuned, tmp_path):
    plain = ttsnn.compile(build(), plan="rank=3", batch=2, database=False, seed=1)
    assert plain.manifest.info == {}
    folder = slow_default(tuned, tmp_path)
    model = build()
    nets = [ttsnn.compile(model, **compile_settings(folder)) for _ in range(2)]
    chosen = nets[0].manifest.info["tuning"]
    assert set(chosen) == {"convs.0", "convs.1", "convs.2", "convs.3"}
    assert chosen["convs.1"] == chosen["convs.2"]
    assert all(entry["us"] < entry["default_us"] for entry in chosen.values())
    files = [tmp_path / "a.ttsnn", tmp_path / "b.ttsnn"]
    for net, file in zip(nets, files):
        net.save(file)
    assert nets[0].manifest == nets[1].manifest
    tiles = {str(f.attrs["ttsnn.tiles"]) for f in layers_of(nets[0].program)}
    assert tiles == {entry["tiles"] for entry in chosen.values()}
    assert tiles == {str(f.attrs["ttsnn.tiles"]) for f in layers_of(nets[1].program)}
    # and it still computes the network
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 5, 4)).astype("float32")
    reference = ttsnn.compile(model, plan="rank=3", batch=2, database=False)
    assert (ttsnn.load(files[0])(x) != reference(x)).mean() < 2e-3


def layers_of(program):
    return [f for _, f in program.functions_items() if f.attrs and "ttsnn.layer" in f.attrs]


def slow_default(tuned, tmp_path):
    """The records, but with the defaults' times a thousand times as long."""
    folder = copied(tuned, tmp_path)
    rows = [json.loads(line) for line in lines(folder)]
    defaults = {choice_in(json.dumps(row)) for row in rows[:2]}
    for row in rows:
        if choice_in(json.dumps(row)) in defaults:
            row[1][1] = [1e3 * s for s in row[1][1]]
    (folder / RECORDS).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_records_of_a_batch_serve_an_open_one(tuned, tmp_path):
    folder = slow_default(tuned, tmp_path)
    settings = compile_settings(folder) | {"dynamic_batch": True}
    net = ttsnn.compile(build(), **settings)
    assert net.manifest.info["tuning"]["convs.1"]["batch"] == 2
    other = ttsnn.compile(build(), **compile_settings(folder) | {"batch": 3})
    assert other.manifest.info == {}


def test_default_place_is_found_and_a_damaged_one_is_a_warning(tuned, tmp_path, monkeypatch):
    from ttsnn.targets import get_target
    from ttsnn.tuning.database import default_folder

    monkeypatch.setenv("TTSNN_TUNE_DIR", str(tmp_path))
    place = default_folder(get_target("cpu").tuning_identity())
    shutil.copytree(tuned[0], place)
    settings = compile_settings(None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ttsnn.compile(build(), **settings).manifest.info["tuning"]
        assert ttsnn.compile(build(), **settings | {"database": False}).manifest.info == {}
    (place / RECORDS).write_text("nonsense\n")
    with pytest.warns(UserWarning, match=r"compiled without tuning.*damaged"):
        assert ttsnn.compile(build(), **settings).manifest.info == {}
    with pytest.raises(TuningError, match="damaged"):
        ttsnn.compile(build(), **settings | {"database": place})


def test_another_target_is_refused(tuned):
    with pytest.raises(TuningError, match="another target"):
        ttsnn.compile(build(), **compile_settings(tuned[0]), target="cpu:mcpu=x86-64-v2")


def test_command_line(tuned, tmp_path, capfd):
    folder = copied(tuned, tmp_path)
    words = ["tests.tuning.small_network:build", "--plan", "rank=3", "--batch", "2"]
    words += ["--database", str(folder)]
    assert main(["tune", *words, "--threads", "1", "--trials", "9", "--json"]) == 0
    data = json.loads(capfd.readouterr().out)
    assert data["new_trials"] == 0
    assert main(["tune", *words, "--threads", "1", "--trials", "9"]) == 0
    assert "convs.1 +1" in capfd.readouterr().out
    out = tmp_path / "net.ttsnn"
    assert main(["compile", *words, "-o", str(out), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["tuned_layers"] == 4
    assert main(["tune", "spiking_mlp", "--tracker", "nohost", "--key", "k"]) == 2
    assert "HOST:PORT" in capfd.readouterr().err


def test_bad_settings(monkeypatch):
    with pytest.raises(DataError, match="trials"):
        ttsnn.tune("spiking_mlp", trials=0)
    with pytest.raises(DataError, match="minutes"):
        ttsnn.tune("spiking_mlp", minutes=-1.0)
    with pytest.raises(TuningError, match="goes with a key"):
        ttsnn.tune("spiking_mlp", tracker="localhost:9190")
    monkeypatch.setitem(tuning._NEEDED, "no_such_module", "no-such-package")
    with pytest.raises(TuningError, match=r"no-such-package.*ttsnn\[tune\]"):
        ttsnn.tune("spiking_mlp")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_killed_runs_go_on(how, tmp_path):
    words = [sys.executable, "-m", "ttsnn", "tune", "tests.tuning.small_network:build"]
    words += ["--plan", "rank=3", "--batch", "2", "--threads", "1", "--trials", "60", "--json"]
    words += ["--database", str(tmp_path)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    records = tmp_path / RECORDS
    for _ in range(1200):
        if records.exists() and len(records.read_bytes().splitlines()) >= 6:
            break
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(how)
    out, _ = process.communicate(timeout=60)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert json.loads(out)["interrupted"]
    _, alive = psutil.wait_procs(children, timeout=40)
    assert not alive
    before = lines(tmp_path)
    data = ttsnn.tune(build(), **SETTINGS, trials=len(before) + 2, database=tmp_path)
    assert data["trials"] >= len(before) + 2
    assert len(lines(tmp_path)) == data["trials"]


@pytest.mark.slow
def test_devices_of_a_tracker(tmp_path):
    from tvm.rpc import Server
    from tvm.rpc.tracker import Tracker

    tracker = Tracker(host="127.0.0.1", port=9290, port_end=9390)
    server = Server(
        "127.0.0.1", port=9491, port_end=9590, key="board", tracker_addr=("127.0.0.1", tracker.port)
    )
    try:
        place = f"127.0.0.1:{tracker.port}"
        data = ttsnn.tune(
            build(), **SETTINGS, trials=9, database=tmp_path, tracker=place, key="board"
        )
        assert data["trials"] >= 9
        assert data["best_ms"] is not None
        with pytest.raises(TuningError, match="no device with the key 'other'"):
            ttsnn.tune(
                build(), **SETTINGS, trials=99, database=tmp_path, tracker=place, key="other"
            )
    finally:
        server.terminate()
        tracker.terminate()
