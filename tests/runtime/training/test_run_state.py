"""Schedules, data order, checkpoints and logs: what a run consists of besides arithmetic."""

import csv
import json

import numpy as np
import pytest
import torch

from ttsnn.errors import ArtifactError, DataError
from ttsnn.runtime.training.checkpoint import (
    INDEX,
    Checkpoint,
    check_model,
    read_checkpoint,
    write_checkpoint,
)
from ttsnn.runtime.training.logs import RunLog
from ttsnn.runtime.training.order import DataOrder
from ttsnn.runtime.training.schedules import ConstantLR, CosineLR, StepLR, schedule_from_json


def torch_rates(make, steps, every=1):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    scheduler = make(optimizer)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if (step + 1) % every == 0:
            scheduler.step()
    return rates


def test_schedules_follow_pytorch():
    per_epoch, epochs = 7, 6
    steps = per_epoch * epochs
    cosine = CosineLR(epochs=epochs, minimum=0.01)
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps, 0.01), steps
    )
    assert np.allclose([cosine.lr(0.3, s, per_epoch) for s in range(steps)], expected, rtol=1e-12)
    step = StepLR(every=2, gamma=0.5)
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5), steps, every=per_epoch
    )
    assert np.allclose([step.lr(0.3, s, per_epoch) for s in range(steps)], expected, rtol=1e-12)
    assert cosine.lr(0.3, steps + 5, per_epoch) == pytest.approx(0.01)


def test_warmup_rises_linearly_to_the_schedule():
    warm = ConstantLR(warmup_epochs=2.0)
    assert [warm.lr(1.0, s, 2) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("schedule", [ConstantLR(), StepLR(every=3), CosineLR(1.0, epochs=5)])
def test_schedules_survive_json(schedule):
    assert schedule_from_json(json.loads(json.dumps(schedule.to_json()))) == schedule


@pytest.mark.parametrize(
    "make",
    [
        lambda: StepLR(every=0),
        lambda: CosineLR(epochs=0),
        lambda: ConstantLR(warmup_epochs=-1),
        lambda: schedule_from_json({"name": "magic"}),
        lambda: schedule_from_json({"name": "step", "speed": 3}),
    ],
)
def test_bad_schedules_are_refused(make):
    with pytest.raises(DataError, match="schedule"):
        make()


def test_processes_share_the_batches_of_one():
    samples, batch, world = 23, 3, 2
    one = DataOrder(samples, batch * world, seed=5)
    many = [DataOrder(samples, batch, seed=5, rank=r, world=world) for r in range(world)]
    assert one.steps_per_epoch == many[0].steps_per_epoch == 3
    for step in range(7):
        joined = np.concatenate([o.indices(step) for o in many])
        assert np.array_equal(joined, one.indices(step))
    epoch = np.concatenate([one.indices(s) for s in range(3)])
    assert len(set(epoch.tolist())) == len(epoch) == 18
    assert not np.array_equal(one.indices(0), one.indices(3))
    assert not np.array_equal(one.indices(0), DataOrder(samples, 6, seed=6).indices(0))


def test_impossible_orders_are_refused():
    with pytest.raises(DataError, match="empty"):
        DataOrder(0, 4)
    with pytest.raises(DataError, match="fewer than one batch of 4 in each of 2"):
        DataOrder(7, 4, world=2)


def checkpoint(step=3, **changes):
    rng = np.random.default_rng(step)
    fields = {
        "model": {"a.weight": rng.standard_normal((3, 2)), "bn.n": np.array(step)},
        "optimizer": {"a.weight.momentum_buffer": rng.standard_normal((3, 2)).astype("f4")},
        "config": {"lr": 0.1, "model": "tiny"},
        "progress": {"best": 0.5},
    }
    return Checkpoint(step, **{**fields, **changes})


def test_a_checkpoint_is_read_as_it_was_written(tmp_path):
    write_checkpoint(tmp_path, checkpoint(3))
    write_checkpoint(tmp_path, checkpoint(4))
    found, expected = read_checkpoint(tmp_path), checkpoint(4)
    assert (found.step, found.config, found.progress) == (4, expected.config, expected.progress)
    for group in ("model", "optimizer"):
        ours, theirs = getattr(found, group), getattr(expected, group)
        assert sorted(ours) == sorted(theirs)
        assert all(np.array_equal(ours[k], theirs[k]) for k in ours)
        assert all(ours[k].dtype == theirs[k].dtype for k in ours)
    assert sorted(p.name for p in tmp_path.iterdir()) == [INDEX, "step-00000004.safetensors"]


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, checkpoint(3))
    bad = checkpoint(4, model={"w": np.array([1.0, np.nan])})
    with pytest.raises(ArtifactError, match="w holds NaN"):
        write_checkpoint(tmp_path, bad)
    import ttsnn.runtime.training.checkpoint as module

    def killed(*_):
        raise KeyboardInterrupt  # between the tensors and the file that commits them

    monkeypatch.setattr(module, "_sync", killed)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path, checkpoint(5))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path).step == 3
    write_checkpoint(tmp_path, checkpoint(6))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / INDEX).write_text("{"), "damaged"),
        (lambda d: (d / INDEX).write_text("[]"), "damaged"),
        (lambda d: (d / INDEX).unlink(), "holds no checkpoint"),
        (lambda d: (d / "step-00000003.safetensors").unlink(), "cannot be read"),
        (lambda d: flip(d / "step-00000003.safetensors"), "damaged"),
        (lambda d: cut(d / "step-00000003.safetensors"), "damaged"),
        (lambda d: newer(d / INDEX), "format 99"),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path, damage, message):
    write_checkpoint(tmp_path, checkpoint(3))
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint(tmp_path)


def flip(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut(file):
    file.write_bytes(file.read_bytes()[:-3])


def newer(file):
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": 99}))


def test_another_models_checkpoint_is_named():
    a = {"x": np.zeros(3), "y": np.zeros(2)}
    check_model("c", a, dict(a))
    for other, message in (
        ({"x": np.zeros(3)}, "has 1 that the model lacks"),
        ({**a, "z": np.zeros(1)}, "lacks 1"),
        ({"x": np.zeros(4), "y": np.zeros(2)}, r"x is float64 \[3\], the model's is float64 \[4\]"),
        ({"x": np.zeros(3, "f4"), "y": np.zeros(2)}, "float32"),
    ):
        with pytest.raises(ArtifactError, match=message):
            check_model("c", a, other)


def test_a_resumed_log_drops_what_will_be_written_again(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.train({"step": step, "epoch": 0, "loss": 1 / step, "lr": 0.1})
    log.eval({"step": 4, "epoch": 0, "accuracy": 0.5})
    with open(tmp_path / "steps.csv", "a") as file:
        file.write("6,0,0.1")  # a line that a killed process did not finish
    log = RunLog(tmp_path, 3)
    log.train({"step": 4, "epoch": 0, "loss": 9.0, "lr": 0.1})
    with open(tmp_path / "steps.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4]
    assert float(rows[-1]["loss"]) == 9.0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in lines] == [("train", s) for s in (1, 2, 3, 4)]
    assert (tmp_path / "evals.csv").read_text().count("\n") == 1
    RunLog(tmp_path, 0)
    assert (tmp_path / "log.jsonl").read_text() == ""
