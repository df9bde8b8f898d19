"""One compiled training step and the state that it advances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm

from ttsnn.errors import DataError
from ttsnn.passes.training import (
    Loss,
    Manifest,
    Optimizer,
    Slot,
    build_gradients,
    build_train_step,
    build_update,
)
from ttsnn.program import params_of
from ttsnn.runtime.training.code import TrainingCode, build_training, share, to_numpy, to_torch
from ttsnn.runtime.training.exchange import Exchange
from ttsnn.targets import Target, get_target

__all__ = ["StepResult", "TrainState", "TrainStep"]

_KEPT = ("param", "buffer", "optimizer")


@dataclass(frozen=True)
class TrainState:
    """All that an update changes; never changed itself, so it can be kept or thrown away.

    Attributes:
        step: updates made.
        values: (role, name) → TVM tensor, for the roles param, buffer and optimizer.
        counts: batch norm → ``num_batches_tracked``.
    """

    step: int
    values: dict[tuple[str, str], Any]
    counts: dict[str, int]

    def arrays(self, *roles: str) -> dict[str, np.ndarray]:
        """Values of some roles by name: over the same memory, or copies of a GPU's."""
        return {n: to_numpy(v) for (role, n), v in self.values.items() if role in roles}

    def not_finite(self, *roles: str) -> str | None:
        """Name of a value of these roles that holds NaN or infinity; None without."""
        names = [k for k in self.values if k[0] in roles]
        # one pass over each: NaN and infinity survive a sum
        sums = torch.stack([to_torch(self.values[k]).sum(dtype=torch.float64) for k in names])
        wrong = (~torch.isfinite(sums)).nonzero()
        return names[int(wrong[0])][1] if len(wrong) else None


@dataclass(frozen=True)
class StepResult:
    """What one update tells.

    Attributes:
        loss: of the batch, before the update; the mean over all processes.
        logits: [N, classes] or [T, N, classes], of this process.
        grad_norm: global norm of the gradients before clipping; None without clipping.
    """

    loss: float
    logits: np.ndarray
    grad_norm: float | None


class TrainStep:
    """Forward, loss, backward and update as compiled code.

    One process runs one program. Several run gradients | mean over the processes | update, and
    the running statistics of batch norms are averaged too; each normalises by its own samples.

    Args:
        program: the imported network, batch size fixed.
        loss, optimizer, clip_norm, params, frozen_bn: as in
            :func:`ttsnn.passes.training.build_train_step`.
        target: as in :func:`ttsnn.compile`.
        exchange: the processes.
        activation_checkpointing: as there.

    Attributes:
        planned_mb: 10⁶ bytes of the buffers between the kernels of forward and backward.
        target: what it was compiled for.
        initial: the program's own values, by name.
        checkpointing: what activation checkpointing did; None without.
    """

    def __init__(
        self,
        program: tvm.IRModule,
        loss: Loss,
        optimizer: Optimizer,
        *,
        clip_norm: float | None = None,
        params: tuple[str, ...] | None = None,
        frozen_bn: bool = False,
        target: str | Target = "cpu",
        exchange: Exchange | None = None,
        threads: int | None = None,
        activation_checkpointing: bool = False,
    ) -> None:
        self.exchange = exchange or Exchange()
        self.threads = threads
        common: dict[str, Any] = {
            "params": params,
            "frozen_bn": frozen_bn,
            "activation_checkpointing": activation_checkpointing,
        }
        self._update: TrainingCode | None = None
        if self.exchange.world == 1:
            mods = [build_train_step(program, loss, optimizer, clip_norm=clip_norm, **common)]
        else:
            mods = [
                build_gradients(program, loss, **common),
                build_update(program, optimizer, clip_norm=clip_norm, params=params),
            ]
            self._update = build_training(mods[1], target)
        self._check(Manifest.of(mods[0]))
        self.target = get_target(target)
        self._main = build_training(mods[0], self.target)
        self.manifest = self._main.manifest
        self.checkpointing = self.manifest.options.get("activation_checkpointing")
        self.planned_mb = self._main.planned_bytes.get("main", 0) / 1e6
        self.slots = {
            (s.role, s.name): s
            for mod in mods
            for s in Manifest.of(mod).functions["main"].arguments
            if s.role in _KEPT
        }
        self.initial = {k: v for mod in mods for k, v in params_of(mod).items()}
        self.fallbacks = tuple(
            f for code in (self._main, self._update) if code is not None for f in code.fallbacks
        )
        self.compile_s = sum(c.compile_s for c in (self._main, self._update) if c is not None)

    @staticmethod
    def _check(manifest: Manifest) -> None:
        arguments = manifest.functions["main"].arguments
        for role, what in (("state", "carries state from call to call"),):
            if any(s.role == role for s in arguments):
                raise DataError(
                    f"the network {what}, which training does not support; start each call from "
                    "the same state in forward"
                )
        inputs = [s.name for s in arguments if s.role == "input"]
        if len(inputs) != 1:
            raise DataError(f"the network takes {len(inputs)} inputs; training feeds one")

    @property
    def executable(self) -> Any:
        """TVM's, of the whole step where one process trains."""
        return self._main.executable

    @property
    def logits(self) -> Slot:
        """What the network returns first."""
        return next(s for s in self.manifest.functions["main"].results if s.role == "output")

    def state(
        self,
        step: int = 0,
        model: Mapping[str, np.ndarray] | None = None,
        optimizer: Mapping[str, np.ndarray] | None = None,
    ) -> TrainState:
        """A state to start from, in memory of its own.

        Args:
            step: updates made.
            model: values by ``state_dict`` name; the program's own by default.
            optimizer: state of the optimizer; zeros by default.
        """
        given = {**self.initial, **(model or {}), **(optimizer or {})}
        upload = self._main.place.upload
        values = {
            (role, name): upload(np.array(given[name], dtype=slot.dtype, order="C"))
            for (role, name), slot in self.slots.items()
        }
        counts = {
            entry["name"]: int(given.get(f"{entry['name']}.num_batches_tracked", 0))
            for entry in self.manifest.batch_norm
        }
        return TrainState(step, values, counts)

    def __call__(
        self, state: TrainState, x: Any, labels: np.ndarray, lr: float
    ) -> tuple[TrainState, StepResult]:
        """One update: the new state, and what it tells."""
        out = self._call(self._main, state, lr, {"input": x, "label": labels})
        loss = to_torch(out["loss", "loss"]).to(torch.float64)
        result = {k: v for k, v in out.items() if k[0] in _KEPT}
        norm = out.get(("grad_norm", "grad_norm"))
        if self._update is not None:
            grads = {k: to_torch(v) for k, v in out.items() if k[0] == "grad"}
            buffers = {k: to_torch(v) for k, v in result.items() if k[0] == "buffer"}
            loss = loss.reshape(1).clone()
            self.exchange.mean({**grads, **buffers, "loss": loss})
            if torch.isfinite(loss).all():
                updated = self._call(self._update, state, lr, {}, grads)
                result |= {k: v for k, v in updated.items() if k[0] in _KEPT}
                norm = updated.get(("grad_norm", "grad_norm"))
        counts = {
            e["name"]: state.counts[e["name"]] + int(e["calls"]) for e in self.manifest.batch_norm
        }
        new = TrainState(state.step + 1, {**state.values, **result}, counts)
        logits = np.from_dlpack(out["output", self.logits.name])
        grad_norm = None if norm is None else float(np.from_dlpack(norm))
        return new, StepResult(float(loss), logits, grad_norm)

    def _call(
        self,
        code: TrainingCode,
        state: TrainState,
        lr: float,
        batch: Mapping[str, Any],
        grads: Mapping[tuple[str, str], Any] | None = None,
    ) -> dict[tuple[str, str], Any]:
        def value(slot: Slot) -> Any:
            if slot.role in batch:
                return share(batch[slot.role], slot)
            if slot.role == "lr":
                return share(float(lr), slot)
            if slot.role == "step":
                return share(state.step + 1, slot)
            if slot.role == "grad":
                return share((grads or {})[slot.role, slot.name], slot)
            return state.values[slot.role, slot.name]

        return code.call("main", value, self.threads, keep=_KEPT)
