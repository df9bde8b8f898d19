"""Whole runs of compiled steps: against PyTorch, resumed, and with bad input."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_small import mlp, samples, vgg

import ttsnn
from ttsnn import models
from ttsnn.errors import ArtifactError, DataError
from ttsnn.passes.training import SGD, AdamW, TETLoss
from ttsnn.runtime.training.order import DataOrder
from ttsnn.runtime.training.schedules import CosineLR


def torch_run(model, x, y, *, steps, batch, make, schedule, lr, seed, loss=F.cross_entropy):
    """The same run in PyTorch."""
    model.train()
    order = DataOrder(len(y), batch, seed)
    optimizer = make(model.parameters())
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(lr, step, order.steps_per_epoch)
        chosen = torch.from_numpy(order.indices(step).copy())
        optimizer.zero_grad()
        value = loss(model(x[chosen]), y[chosen])
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def assert_same_weights(trainer, twin, tolerance):
    expected = twin.state_dict()
    state = trainer.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        scale = max(1e-3, float(value.double().abs().max()))
        error = float((state[name].double() - value.double()).abs().max()) / scale
        assert error <= tolerance, (name, error)


def test_twenty_updates_are_those_of_pytorch():
    x, y = samples(40, (1, 8, 8))
    schedule = CosineLR(epochs=4)
    trainer = ttsnn.Trainer(
        vgg(),
        (x, y),
        batch=8,
        epochs=4,
        lr=0.05,
        schedule=schedule,
        optimizer=SGD(momentum=0.9, weight_decay=1e-3),
        plan="rank=2",
        mode="stt",
        seed=3,
        progress=False,
    )
    twin = copy.deepcopy(trainer.module)
    expected = torch_run(
        twin,
        x,
        y,
        steps=20,
        batch=8,
        make=lambda p: torch.optim.SGD(p, lr=1, momentum=0.9, weight_decay=1e-3),
        schedule=schedule,
        lr=0.05,
        seed=3,
    )
    losses = [trainer.train_step().loss for _ in range(20)]
    assert losses == pytest.approx(expected, rel=1e-6)
    assert_same_weights(trainer, twin, 1e-8)


def test_tet_on_the_logits_of_every_timestep():
    x, y = samples(12)
    model = mlp(T=2)
    model.logits = "steps"
    schedule = CosineLR(epochs=2)

    def tet(logits, labels):
        assert logits.dim() == 3
        mean = sum(F.cross_entropy(step, labels) for step in logits) / len(logits)
        return 0.9 * mean + 0.1 * ((logits - 1.0) ** 2).mean()

    trainer = ttsnn.Trainer(
        model,
        (x, y),
        batch=4,
        epochs=2,
        lr=0.01,
        schedule=schedule,
        optimizer=AdamW(),
        loss=TETLoss(lamb=0.1),
        progress=False,
    )
    twin = copy.deepcopy(trainer.module)
    expected = torch_run(
        twin,
        x,
        y,
        steps=6,
        batch=4,
        make=torch.optim.AdamW,
        schedule=schedule,
        lr=0.01,
        seed=0,
        loss=tet,
    )
    losses = [trainer.train_step().loss for _ in range(6)]
    assert losses == pytest.approx(expected, rel=1e-9)
    assert_same_weights(trainer, twin, 1e-8)
    trainer.evaluate((x, y))


def settings(folder, **changes):
    return {
        "batch": 4,
        "epochs": 2,
        "lr": 0.05,
        "optimizer": SGD(momentum=0.9),
        "folder": folder,
        "checkpoint_every": 2,
        "progress": False,
        **changes,
    }


def noise(x, rng):
    return x + torch.from_numpy(rng.standard_normal(tuple(x.shape))) * 0.1


def test_a_stopped_run_goes_on_in_the_same_bits(tmp_path):
    x, y = samples(20)
    data = {"data": (x, y), "eval_data": (x, y), "augment": noise}
    whole = ttsnn.Trainer(mlp(), **data, **settings(tmp_path / "a"))
    summary = whole.fit()
    assert (summary["steps"], whole.total_steps) == (10, 10)

    part = ttsnn.Trainer(mlp(), **data, **settings(tmp_path / "b"))
    plain = part.train_step

    def interrupted():
        if part.step == 7:
            raise SystemExit  # as abrupt as it gets inside a process: nothing is saved
        return plain()

    part.train_step = interrupted
    with pytest.raises(SystemExit):
        part.fit()
    assert json.loads((tmp_path / "b/checkpoint.json").read_text())["step"] == 6
    # other weights to start from: all must come from the checkpoint
    again = ttsnn.Trainer(mlp(seed=9), **data, **settings(tmp_path / "b", resume=True))
    assert again.step == 6
    again.fit()
    for file in ("checkpoint.json", "step-00000010.safetensors", "best.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file

    def figures(run):
        lines = [json.loads(line) for line in (tmp_path / run / "log.jsonl").open()]
        return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]

    assert figures("a") == figures("b")
    assert len(figures("a")) == 12


def test_ctrl_c_saves_where_it_was(tmp_path):
    x, y = samples(20)
    trainer = ttsnn.Trainer(mlp(), (x, y), **settings(tmp_path, checkpoint_every=None))
    plain = trainer.train_step

    def interrupted():
        if trainer.step == 3:
            raise KeyboardInterrupt
        return plain()

    trainer.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert json.loads((tmp_path / "checkpoint.json").read_text())["step"] == 3


def test_bad_input_stops_and_the_last_checkpoint_stays(tmp_path):
    x, y = samples(20)
    trainer = ttsnn.Trainer(mlp(), (x, y), **settings(tmp_path))
    trainer.train_step(), trainer.train_step()
    trainer.save()
    kept = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    trainer.samples._data = (x * float("nan"), y)
    with pytest.raises(DataError, match=r"not finite after update 3.*last good checkpoint \(upd"):
        trainer.fit()
    assert trainer.step == 2
    trainer.samples._data = (x, y)
    trainer.lr = 1e300
    with pytest.raises(DataError, match=r"after update 4 .*last good checkpoint"):
        trainer.fit()
    with pytest.raises(DataError, match="holds a run already"):
        ttsnn.Trainer(mlp(), (x, y), **settings(tmp_path))
    resume = settings(tmp_path, resume=True)
    with pytest.raises(ArtifactError, match="another model"):
        ttsnn.Trainer(mlp(hidden=(9,)), (x, y), **resume)
    with pytest.raises(ArtifactError, match=r"another run: lr is 0\.05 there and 0\.1 here"):
        ttsnn.Trainer(mlp(), (x, y), **{**resume, "lr": 0.1})
    wrong = y.clone()
    wrong[5] = 3
    with pytest.raises(DataError, match="label 3 of sample 5 is out of range"):
        ttsnn.Trainer(mlp(), (x, wrong), **resume)
    for empty in ((x[:0], y[:0]), (x[:3], y[:3])):
        with pytest.raises(DataError, match=r"empty|fewer than one batch"):
            ttsnn.Trainer(mlp(), empty, **resume)
    with pytest.raises(DataError, match=r"a batch of the data is \[4, 1, 3, 4\]"):
        ttsnn.Trainer(mlp(), (x[:, :, :3], y), **resume)
    with pytest.raises(DataError, match="whole numbers"):
        ttsnn.Trainer(mlp(), (x, y.double()), **resume)
    logs = ("steps.csv", "evals.csv", "log.jsonl")
    now = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name not in logs}
    assert now == kept


def test_labels_of_a_dataset_without_a_list_are_checked_batch_by_batch():
    x, y = samples(8)

    class Listed(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return x[i], int(y[i]) if i != 6 else -1

    trainer = ttsnn.Trainer(mlp(), Listed(), batch=4, epochs=1, progress=False)
    with pytest.raises(DataError, match="label -1"):
        trainer.fit()


def test_twin_merged_network_and_artifact_agree_after_training(tmp_path):
    x, y = samples(24, (1, 8, 8))
    trainer = ttsnn.Trainer(
        vgg(), (x, y), batch=8, epochs=2, lr=0.05, plan="rank=2", mode="ptt", progress=False
    )
    before = copy.deepcopy(trainer.module).eval()(x)
    trainer.fit()
    twin = trainer.module.eval()
    merged = models.merge_tt(twin)
    ttsnn.compile(twin, x[:4], out=tmp_path / "net.ttsnn", dynamic_batch=True)
    with torch.no_grad():
        logits = twin(x)
    scale = float(logits.abs().max())
    assert float((merged(x) - logits).detach().abs().max()) <= 1e-9 * scale
    loaded = ttsnn.load(tmp_path / "net.ttsnn")(x)
    assert float((loaded - logits).abs().max()) <= 1e-9 * scale
    assert float((before - logits).detach().abs().max()) > 1e-3 * scale
    accuracy = float((logits.argmax(1) == y).double().mean())
    assert trainer.evaluate((x, y))["accuracy"] == pytest.approx(accuracy)
    assert np.isfinite(scale)


def test_activation_checkpointing_gives_the_same_bits_in_less_memory():
    def run(on):
        torch.manual_seed(0)
        net = models.MSResNet((2, 1), (1, 8, 8), 3, 2, width=8)  # float32
        x, y = samples(24, (1, 8, 8))
        trainer = ttsnn.Trainer(
            net,
            (x.float(), y),
            batch=8,
            lr=0.05,
            optimizer=SGD(momentum=0.9),
            plan="rank=3",
            activation_checkpointing=on,
            progress=False,
        )
        for _ in range(3):
            trainer.train_step()
        return trainer.memory, trainer.state_dict()

    (plain, expected), (checked, state) = run(False), run(True)
    assert plain["checkpointing"] is None
    assert checked["checkpointing"]["segments"] > 1
    assert checked["planned_mb"] < 0.85 * plain["planned_mb"]
    for name, value in expected.items():
        assert torch.equal(value, state[name]), name
    assert int(state["bn1.num_batches_tracked"]) == 3
