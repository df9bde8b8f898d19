"""Learning-rate schedules: pure functions of how many updates have been made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from ttsnn.errors import DataError

__all__ = ["SCHEDULES", "ConstantLR", "CosineLR", "Schedule", "StepLR", "schedule_from_json"]


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each update.

    Args:
        warmup_epochs: during these the rate rises linearly, from rate / number of warm-up
            updates at the first update to the schedule's own.
    """

    name: ClassVar[str] = ""
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if not self.warmup_epochs >= 0:
            raise DataError(f"schedule: warmup_epochs must be at least 0, got {self.warmup_epochs}")

    def lr(self, base: float, step: int, steps_per_epoch: int) -> float:
        """Rate of the update after ``step`` updates.

        Args:
            base: the rate that the user gave.
            step: updates made so far, from 0.
            steps_per_epoch: updates of one epoch.
        """
        warm = round(self.warmup_epochs * steps_per_epoch)
        rise = (step + 1) / warm if step < warm else 1.0
        return rise * self._plain(base, step, steps_per_epoch)

    def _plain(self, base: float, step: int, steps_per_epoch: int) -> float:
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True)
class ConstantLR(Schedule):
    """The same rate all the time."""

    name: ClassVar[str] = "constant"

    def _plain(self, base: float, step: int, steps_per_epoch: int) -> float:
        return base


@dataclass(frozen=True)
class StepLR(Schedule):
    """``base · gamma^⌊epoch / every⌋``, as ``torch.optim.lr_scheduler.StepLR`` once an epoch.

    Args:
        every: epochs between two changes.
        gamma: factor of each change.
    """

    name: ClassVar[str] = "step"
    every: int = 30
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or not self.gamma > 0:
            raise DataError(
                f"schedule step: every must be at least 1 and gamma above 0, got {self.every} "
                f"and {self.gamma}"
            )

    def _plain(self, base: float, step: int, steps_per_epoch: int) -> float:
        return base * self.gamma ** (step // steps_per_epoch // self.every)


@dataclass(frozen=True)
class CosineLR(Schedule):
    """``minimum + (base - minimum) · (1 + cos(π · t)) / 2``, t the share of epochs that is done.

    ``torch.optim.lr_scheduler.CosineAnnealingLR`` with ``T_max`` = all updates, once an update
    (https://arxiv.org/abs/1608.03983, without restarts). Stays at the minimum afterwards.

    Args:
        epochs: until the minimum is reached.
        minimum: the last rate.
    """

    name: ClassVar[str] = "cosine"
    epochs: float = 100
    minimum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.epochs > 0 or not self.minimum >= 0:
            raise DataError(
                f"schedule cosine: epochs must be above 0 and minimum at least 0, got "
                f"{self.epochs} and {self.minimum}"
            )

    def _plain(self, base: float, step: int, steps_per_epoch: int) -> float:
        done = min(1.0, step / (self.epochs * steps_per_epoch))
        return self.minimum + (base - self.minimum) * (1 + math.cos(math.pi * done)) / 2


SCHEDULES: dict[str, type[Schedule]] = {c.name: c for c in (ConstantLR, StepLR, CosineLR)}
"""Name → schedule."""


def schedule_from_json(data: dict[str, Any]) -> Schedule:
    """Inverse of :meth:`Schedule.to_json`.

    Raises:
        DataError: an unknown name or setting.
    """
    settings = dict(data)
    name = settings.pop("name", None)
    if name not in SCHEDULES:
        raise DataError(f"unknown schedule {name!r}: use one of {', '.join(SCHEDULES)}")
    try:
        return SCHEDULES[name](**settings)
    except TypeError as error:
        raise DataError(f"schedule {name}: {error}") from None
