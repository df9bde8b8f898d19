"""``ttsnn.Trainer``: whole training runs of compiled steps."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ttsnn.artifact import replacing
from ttsnn.errors import ArtifactError, DataError
from ttsnn.passes.training import SGD, CrossEntropy, Loss, Optimizer
from ttsnn.runtime.training.checkpoint import (
    INDEX,
    Checkpoint,
    check_model,
    read_checkpoint,
    write_checkpoint,
)
from ttsnn.runtime.training.exchange import Exchange, join
from ttsnn.runtime.training.inference import InferenceBuild
from ttsnn.runtime.training.logs import RunLog
from ttsnn.runtime.training.network import arrays_of, network_of, trained_names
from ttsnn.runtime.training.order import DataOrder
from ttsnn.runtime.training.progress import Progress
from ttsnn.runtime.training.samples import as_samples, check_labels
from ttsnn.runtime.training.schedules import ConstantLR, Schedule
from ttsnn.runtime.training.step import StepResult, TrainStep
from ttsnn.sources import ModelOptions
from ttsnn.weights import PLAN_KEY

__all__ = ["Augment", "Trainer"]

Augment = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]
"""Changes a batch with the random numbers it is given, and no others: (x, rng) → x."""

BEST = "best.safetensors"


class Trainer:
    """Trains a network; every update is one call of compiled code.

    A run with a ``folder`` can be killed at any moment and continued with ``resume=True``: it
    goes on from its last checkpoint, and ends in the same bits as a run that was never killed
    (with the same versions of ttsnn and NumPy, on the same kind of machine). Weights, optimizer
    state and counters come from the checkpoint; learning rate, order of the data and random
    numbers for augmentation are functions of ``seed`` and the number of updates.

    Under torchrun the processes share each update: ``batch`` is each one's. Gradients and running
    statistics are averaged; batch norms normalise by each process's own samples. Two processes
    equal one with the double batch where batch norms are frozen (or there are none).

    Args:
        model: what :func:`ttsnn.compile` accepts, except files. A module without a plan gets the
            trained weights written into it; see :attr:`module`.
        data: samples to train on, see :func:`ttsnn.runtime.training.samples.as_samples`.
        eval_data: samples that accuracy is measured on after every epoch.
        batch: samples of one update in one process.
        epochs: passes over the data; samples that fill no batch are left out of an epoch.
        optimizer, loss: of :mod:`ttsnn.passes.training`; default plain SGD, cross-entropy.
        lr: learning rate, shaped by ``schedule``.
        clip_norm: limit of the gradients' global norm.
        frozen_bn: batch norms keep their running statistics.
        augment: applied to each batch of training.
        plan, mode, init: tensor trains; None: dense.
        dtype: ``"float32"`` or ``"float64"``; as the weights are by default.
        seed: of the data's order, augmentation and fresh cores.
        folder: for checkpoints and logs; None: neither.
        resume: go on from the checkpoint in ``folder``; where there is none yet, start.
        checkpoint_every: updates between two checkpoints, beside one after every epoch.
        tensorboard: write TensorBoard's files too.
        target, threads, options: as in :func:`ttsnn.compile`.
        activation_checkpointing: keep few activations and compute the others again in the
            backward pass: less memory, more time, the same bits.
        progress: show a progress bar, where stderr is a terminal.

    Raises:
        DataError: an empty dataset, labels out of range, a run already in ``folder``.
        ArtifactError: the checkpoint is damaged, or of another run.
        TTSNNError: the network cannot be trained.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        eval_data: Any = None,
        batch: int = 32,
        epochs: int = 1,
        optimizer: Optimizer | None = None,
        loss: Loss | None = None,
        lr: float = 0.1,
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        frozen_bn: bool = False,
        augment: Augment | None = None,
        plan: Any = None,
        mode: str = "ptt",
        init: str = "fit",
        dtype: str | None = None,
        seed: int = 0,
        folder: str | os.PathLike | None = None,
        resume: bool = False,
        checkpoint_every: int | None = None,
        tensorboard: bool = False,
        target: str = "cpu",
        threads: int | None = None,
        options: ModelOptions | None = None,
        activation_checkpointing: bool = False,
        progress: bool = True,
    ) -> None:
        _check_numbers(batch=batch, epochs=epochs, checkpoint_every=checkpoint_every or 1)
        if not (lr > 0 and math.isfinite(lr)):
            raise DataError(f"lr must be above 0, got {lr}")
        self.exchange: Exchange = join()
        self.folder = None if folder is None else Path(folder)
        self._found = self._prepare_folder(resume)
        network = network_of(
            model, plan=plan, mode=mode, init=init, seed=seed, dtype=dtype, options=options
        )
        self.name, self.plan = network.name, network.plan
        self._module = network.module
        weight = next(p for p in self._module.parameters() if p.is_floating_point())
        self._torch_dtype = weight.dtype
        axis = network.input.batch_axis
        self.samples = as_samples(data, axis)
        self.eval_samples = None if eval_data is None else as_samples(eval_data, axis)
        self.order = DataOrder(
            len(self.samples), batch, seed, self.exchange.rank, self.exchange.world
        )
        self.epochs, self.lr, self.schedule = epochs, lr, schedule or ConstantLR()
        self.augment = augment
        self.threads = threads
        self.checkpoint_every = checkpoint_every
        self._show = progress and self.exchange.rank == 0
        self._tensorboard = tensorboard
        optimizer, loss = optimizer or SGD(), loss or CrossEntropy()

        x, _ = self.samples.batch(self.order.indices(0), self._torch_dtype)
        _check_input(x, network.input.sized(batch))
        program = network.program(x)
        self._step = TrainStep(
            program,
            loss,
            optimizer,
            clip_norm=clip_norm,
            params=trained_names(self._module, program),
            frozen_bn=frozen_bn,
            target=target,
            exchange=self.exchange,
            threads=threads,
            activation_checkpointing=activation_checkpointing,
        )
        self.classes = self._step.logits.shape[-1]
        for samples, what in ((self.samples, "training data"), (self.eval_samples, "eval data")):
            if samples is not None and samples.labels is not None:
                check_labels(samples.labels, self.classes, what)
        self._inference = InferenceBuild(
            network.program(x[:1] if axis == 0 else x[:, :1], dynamic_batch=True),
            target,
            network.name,
        )
        self._axis = axis
        self.config = {
            "model": self.name,
            "plan": None if self.plan is None else self.plan.to_json(),
            "dtype": str(self._torch_dtype).removeprefix("torch."),
            "optimizer": optimizer.to_json(),
            "loss": loss.to_json(),
            "lr": lr,
            "schedule": self.schedule.to_json(),
            "clip_norm": clip_norm,
            "frozen_bn": frozen_bn,
            "batch": batch,
            "processes": self.exchange.world,
            "samples": len(self.samples),
            "seed": seed,
            "order": self.order.checksum(),
            "augment": None if augment is None else getattr(augment, "__name__", "yes"),
        }
        self.progress: dict[str, Any] = {"best_accuracy": None, "best_step": None}
        self._state = self._step.state(model=arrays_of(self._module))
        if self._found is not None:
            self._restore(self._found)
            self._found = None

    # --- what a user asks --------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Updates made."""
        return self._state.step

    @property
    def total_steps(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.order.steps_per_epoch

    @property
    def fallback_kernels(self) -> tuple[str, ...]:
        """Kernels of the step that run as plain loops."""
        return self._step.fallbacks

    @property
    def memory(self) -> dict[str, Any]:
        """``planned_mb`` of forward and backward; ``checkpointing``: None where it is off."""
        return {"planned_mb": self._step.planned_mb, "checkpointing": self._step.checkpointing}

    @property
    def compile_s(self) -> float:
        """Seconds that compiling the step took."""
        return self._step.compile_s

    @property
    def module(self) -> nn.Module:
        """The PyTorch network with the weights as they are now (written into it)."""
        state = self._state.arrays("param", "buffer")
        own: dict[str, torch.Tensor] = dict(self._module.named_parameters())
        own |= dict(self._module.named_buffers())
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(torch.from_numpy(value))
            for name, count in self._state.counts.items():
                if f"{name}.num_batches_tracked" in own:
                    own[f"{name}.num_batches_tracked"].fill_(count)
        return self._module

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Weights as they are now, by the names of the PyTorch network (copies)."""
        return {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def fit(self) -> dict[str, Any]:
        """Train to the end; returns a summary of plain values (``ms_per_step``: updates alone).

        Interrupted (Ctrl-C), it saves a checkpoint and raises KeyboardInterrupt.

        Raises:
            DataError: a loss or weight that is no number, a label out of range; the last
                checkpoint stays.
        """
        log = self._open_log()
        last: StepResult | None = None
        start, first, self._spent = time.perf_counter(), self.step, 0.0
        try:
            with Progress(self._show, self.total_steps, self.step) as bar:
                while self.step < self.total_steps:
                    last = self._one_step(log)
                    bar.advance(self._epoch(self.step - 1) + 1, self.epochs, last.loss)
                    self._after_step(log)
        except KeyboardInterrupt:
            if self.step > first:
                self.save()
            raise
        finally:
            if log is not None:
                log.close()
        seconds = time.perf_counter() - start
        done, spent = self.step - first, self._spent
        return {
            "steps": self.step,
            "epochs": self.epochs,
            "loss": None if last is None else last.loss,
            **self.progress,
            "seconds": seconds,
            "ms_per_step": 1e3 * spent / done if done else None,
        }

    def train_step(self) -> StepResult:
        """One update on the next batch.

        Raises:
            DataError: the loss or a weight is no number any more (the state stays as it was), or
                a label is out of range.
        """
        state = self._state
        indices = self.order.indices(state.step)
        x, labels = self.samples.batch(indices, self._torch_dtype)
        if self.samples.labels is None:
            check_labels(labels, self.classes, f"update {state.step + 1}")
        if self.augment is not None:
            x = self.augment(x, self.order.rng(state.step)).contiguous()
        new, result = self._step(state, x, labels, self.learning_rate(state.step))
        if not math.isfinite(result.loss):
            raise DataError(
                f"the loss is {result.loss} at update {state.step + 1}; {self._last_good()}; try a "
                "smaller lr, or clip_norm"
            )
        # a spike hides NaN (it is not above the threshold), so a finite loss alone proves nothing
        wrong = new.not_finite("param", "buffer")
        if wrong is not None:
            raise DataError(
                f"{wrong} is not finite after update {state.step + 1} (loss {result.loss:g}); "
                f"{self._last_good()}; look for NaN in the data, or try a smaller lr or clip_norm"
            )
        self._labels = labels
        self._state = new
        return result

    def learning_rate(self, step: int) -> float:
        """Rate of the update after ``step`` updates."""
        return self.schedule.lr(self.lr, step, self.order.steps_per_epoch)

    def evaluate(self, data: Any = None, *, batch: int | None = None) -> dict[str, Any]:
        """Accuracy of the compiled inference build with the weights as they are now.

        Args:
            data: samples; those of ``eval_data`` by default.
            batch: samples of one call; as in training by default.

        Returns:
            ``accuracy`` in 0 … 1, ``samples``, ``seconds``.
        """
        samples = self.eval_samples if data is None else as_samples(data, self._axis)
        if samples is None or len(samples) == 0:
            raise DataError("there are no samples to evaluate on")
        start = time.perf_counter()
        net = self._inference.net(arrays_of(self.module))
        size, right = batch or self.order.batch, 0
        for begin in range(0, len(samples), size):
            indices = np.arange(begin, min(begin + size, len(samples)))
            x, labels = samples.batch(indices, self._torch_dtype)
            out = net(x, threads=self.threads)
            right += _right((out[0] if isinstance(out, tuple) else out).numpy(), labels)
        return {
            "accuracy": right / len(samples),
            "samples": len(samples),
            "seconds": time.perf_counter() - start,
        }

    def save(self) -> None:
        """Write a checkpoint to the run's folder, if it has one.

        Raises:
            ArtifactError: weights that are not finite, or a full disk; the last one stays.
        """
        if self.folder is None or self.exchange.rank != 0:
            return
        write_checkpoint(
            self.folder,
            Checkpoint(
                self.step,
                _arrays(self.module),
                self._state.arrays("optimizer"),
                self.config,
                dict(self.progress),
            ),
        )

    # --- parts of a run ----------------------------------------------------------------------

    def _one_step(self, log: RunLog | None) -> StepResult:
        start = time.perf_counter()
        lr = self.learning_rate(self.step)
        result = self.train_step()
        seconds = time.perf_counter() - start
        self._spent += seconds
        if log is not None:
            row = {
                "step": self.step,
                "epoch": self._epoch(self.step - 1),
                "loss": result.loss,
                "accuracy": _right(result.logits, self._labels) / len(self._labels),
                "lr": lr,
                "seconds": round(seconds, 6),
            }
            if result.grad_norm is not None:
                row["grad_norm"] = result.grad_norm
            log.train(row)
        return result

    def _after_step(self, log: RunLog | None) -> None:
        """Evaluation and checkpoint, where they are due."""
        ended = self.step % self.order.steps_per_epoch == 0
        if ended and self.eval_samples is not None and self.exchange.rank == 0:
            row = self.evaluate()
            best = self.progress["best_accuracy"]
            if best is None or row["accuracy"] > best:
                self._write_best()
                self.progress |= {"best_accuracy": row["accuracy"], "best_step": self.step}
            self.progress["last_accuracy"] = row["accuracy"]
            if log is not None:
                log.eval({"step": self.step, "epoch": self._epoch(self.step - 1), **row})
        every = self.checkpoint_every
        if ended or (every is not None and self.step % every == 0):
            self.save()
            self.exchange.barrier()

    def _write_best(self) -> None:
        if self.folder is None:
            return
        from safetensors.numpy import save

        # a single entry: their order in the file is not fixed
        plan = None if self.plan is None else {PLAN_KEY: json.dumps(self.plan.to_json())}
        with replacing(self.folder / BEST) as temporary:
            temporary.write_bytes(save(_arrays(self.module), plan))

    def _epoch(self, step: int) -> int:
        return step // self.order.steps_per_epoch

    def _open_log(self) -> RunLog | None:
        if self.folder is None or self.exchange.rank != 0:
            return None
        return RunLog(self.folder, self.step, tensorboard=self._tensorboard)

    def _last_good(self) -> str:
        if self.folder is None or not (self.folder / INDEX).is_file():
            return "there is no checkpoint yet"
        return f"the last good checkpoint (update {read_checkpoint(self.folder).step}) stays"

    def _prepare_folder(self, resume: bool) -> Checkpoint | None:
        """Make the folder; the checkpoint to go on from, read before minutes of work."""
        if self.folder is None:
            if resume:
                raise DataError("resume needs the folder of the run")
            return None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"{self.folder}: cannot be made ({error.strerror}); give another folder"
            ) from None
        there = (self.folder / INDEX).is_file()
        if there and not resume:
            raise DataError(f"{self.folder} holds a run already; resume it, or give another folder")
        return read_checkpoint(self.folder) if there else None

    def _restore(self, found: Checkpoint) -> None:
        assert self.folder is not None
        where = self.folder / INDEX
        check_model(where, found.model, _arrays(self._module))
        check_model(where, found.optimizer, self._state.arrays("optimizer"))
        differing = [k for k in self.config if found.config.get(k) != _json(self.config[k])]
        if differing:
            listed = ", ".join(
                f"{k} is {_short(found.config.get(k))} there and {_short(self.config[k])} here"
                for k in differing[:3]
            )
            raise ArtifactError(
                f"{where}: a checkpoint of another run: {listed}; give the same settings, or "
                "start a new run in another folder"
            )
        self.progress = dict(found.progress)
        self._state = self._step.state(found.step, found.model, found.optimizer)
        for name, value in found.model.items():  # what no update changes
            own = self._module.state_dict()[name]
            own.copy_(torch.from_numpy(np.array(value)))


def _right(logits: np.ndarray, labels: np.ndarray) -> int:
    """How many samples have their largest logit at the label; a time axis is averaged."""
    if logits.ndim == 3:
        logits = logits.mean(0)
    return int((logits.argmax(-1) == labels).sum())


def _arrays(module: nn.Module) -> dict[str, np.ndarray]:
    """The state_dict as arrays over the same memory."""
    return {k: v.detach().numpy() for k, v in module.state_dict().items()}


def _check_numbers(**values: int) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"{name} must be a whole number of at least 1, got {value!r}")


def _check_input(x: torch.Tensor, expected: tuple[int, ...]) -> None:
    if tuple(x.shape) != expected:
        raise DataError(
            f"a batch of the data is {list(x.shape)}, the network takes {list(expected)}; load "
            "the data, or create the network, with fitting sizes"
        )


def _json(value: Any) -> Any:
    """As it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
