"""The tuning database: where it is, what it refuses, what a killed writer leaves."""

from __future__ import annotations

import json

import pytest

from ttsnn.errors import TargetError, TuningError
from ttsnn.targets import Target, get_target
from ttsnn.tuning.best import Timing, contender, pick
from ttsnn.tuning.database import TuningDatabase, default_folder
from ttsnn.tuning.lookup import look_up

HASWELL = get_target("cpu:mcpu=haswell").tuning_identity()
ZEN = get_target("cpu:mcpu=znver4").tuning_identity()


def test_default_place_is_the_targets_own(monkeypatch, tmp_path):
    monkeypatch.setenv("TTSNN_TUNE_DIR", str(tmp_path))
    places = {default_folder(i) for i in (HASWELL, ZEN)}
    assert len(places) == 2
    assert all(p.parent == tmp_path for p in places)
    assert any("haswell" in p.name and "avx2" in p.name for p in places)
    monkeypatch.delenv("TTSNN_TUNE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder(ZEN).parent == tmp_path / "cache/ttsnn/tune"


def test_threads_to_tune_for_do_not_change_the_target():
    assert get_target("cpu:mcpu=haswell,num-cores=7").tuning_identity() == HASWELL


def test_another_targets_records_are_refused(tmp_path):
    with TuningDatabase(tmp_path, HASWELL).writing():
        pass
    with pytest.raises(TuningError, match=r"mcpu 'haswell', not 'znver4'"):
        TuningDatabase(tmp_path, ZEN)
    assert TuningDatabase(tmp_path, HASWELL).records() == []


def test_one_writer_at_a_time(tmp_path):
    with (
        TuningDatabase(tmp_path, HASWELL).writing(),
        pytest.raises(TuningError, match="another `ttsnn tune`"),
        TuningDatabase(tmp_path, HASWELL).writing(),
    ):
        pass
    with TuningDatabase(tmp_path, HASWELL).writing():  # the lock went with its owner
        pass


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps({"format": 9, "target": HASWELL}), "newer ttsnn"),
    ],
)
def test_damaged_target_file(tmp_path, content, said):
    (tmp_path / "target.json").write_text(content)
    with pytest.raises(TuningError, match=said):
        TuningDatabase(tmp_path, HASWELL)


def test_records_that_are_none(tmp_path):
    store = TuningDatabase(tmp_path, HASWELL)
    with store.writing():
        pass
    (tmp_path / "database_tuning_record.json").write_text("no JSON\n")
    with pytest.raises(TuningError, match="damaged"):
        store.records()
    (tmp_path / "target.json").unlink()
    with pytest.raises(TuningError, match="of which target"):
        TuningDatabase(tmp_path, HASWELL)
    with pytest.raises(TuningError, match="is a file"):
        TuningDatabase(tmp_path / "database_tuning_record.json", HASWELL)


def test_missing_database_is_an_error_only_where_it_is_named(tmp_path):
    cpu = get_target("cpu")
    assert look_up(None, cpu) is None
    assert look_up(None, cpu, False) is None
    with pytest.raises(TuningError, match="no tuning database there"):
        look_up(None, cpu, tmp_path / "none")


def test_targets_without_a_tuner(tmp_path):
    class Other(Target):
        name = "other"
        description = constraints = ""

        def lower(self, mod, *, record_spikes=False, dump_ir=None):
            return mod

        def build(self, lowered):
            return None

        def kernels(self, lowered):
            return []

    assert look_up(None, Other()) is None
    with pytest.raises(TargetError, match="cannot be tuned"):
        look_up(None, Other(), tmp_path)


def timing(name, seconds, records=1):
    return {name: Timing(name, seconds, records)}


@pytest.mark.parametrize(
    ("measured", "winner"),
    [
        (timing("d", 1.0) | timing("a", 0.9), "a"),
        (timing("d", 1.0) | timing("a", 0.97), "d"),  # one lucky measurement is no gain
        (timing("d", 1.0) | timing("a", 0.97, 2), "a"),
        (timing("d", 1.0) | timing("a", 0.995, 9), "d"),
        (timing("d", 1.0) | timing("a", 0.96) | timing("b", 0.98, 2), "b"),
        (timing("a", 2.0) | timing("b", 1.0), "b"),  # the default was never measured
        (timing("d", 1.0), "d"),
    ],
)
def test_the_fastest_that_is_surely_faster_wins(measured, winner):
    assert pick(measured, "d").choice == winner
    assert pick({}, "d") is None


def test_what_is_measured_again():
    lucky = timing("d", 1.0, 3) | timing("a", 0.97) | timing("b", 0.98, 2)
    assert contender(lucky, "d").choice == "a"
    assert contender(timing("d", 1.0) | timing("a", 0.995), "d") is None
    assert contender(timing("d", 1.0) | timing("a", 0.9, 2), "d") is None
    assert contender(timing("a", 0.9), "d") is None
