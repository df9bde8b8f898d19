"""Which samples each update sees: a function of seed, epoch and position, so it can be resumed."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ttsnn.errors import DataError

__all__ = ["DataOrder"]


@dataclass(frozen=True)
class DataOrder:
    """Shuffled batches of a dataset, split among processes.

    Every epoch has a permutation of its own, drawn from ``(seed, epoch)`` alone. Nothing is kept
    from batch to batch, so ``epoch`` and position say all of the state. The compiled step has a
    fixed batch size: the samples that are left over at the end of a permutation are not seen in
    that epoch.

    Args:
        samples: size of the dataset.
        batch: samples of one update in one process.
        seed: of the permutations.
        rank, world: this process's number, and how many there are; together they take
            ``batch · world`` samples an update, the same as one process with that batch.
        shuffle: False: the dataset's own order.

    Raises:
        DataError: no sample, or fewer than one batch.
    """

    samples: int
    batch: int
    seed: int = 0
    rank: int = 0
    world: int = 1
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.samples == 0:
            raise DataError("the dataset is empty: there is nothing to train on")
        if self.samples < self.batch * self.world:
            raise DataError(
                f"the dataset has {self.samples} sample(s), fewer than one batch of {self.batch}"
                + (f" in each of {self.world} processes" if self.world > 1 else "")
                + "; give a smaller batch"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Updates of one epoch."""
        return self.samples // (self.batch * self.world)

    def permutation(self, epoch: int) -> np.ndarray:
        """Sample indices of an epoch, of all processes, int64 [samples]."""
        if not self.shuffle:
            return np.arange(self.samples)
        return _permutation(self.seed, epoch, self.samples)

    def indices(self, step: int) -> np.ndarray:
        """This process's samples of the update after ``step`` updates, int64 [batch]."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = (position * self.world + self.rank) * self.batch
        return self.permutation(epoch)[start : start + self.batch]

    def rng(self, step: int) -> np.random.Generator:
        """Random numbers of one update in this process, for augmentation."""
        return np.random.default_rng([self.seed, 1, step, self.rank])

    def checksum(self) -> int:
        """CRC-32 of the first permutation: another NumPy might draw another one."""
        return zlib.crc32(self.permutation(0).astype("<i8").tobytes())


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, samples: int) -> np.ndarray:
    order = np.random.default_rng([seed, epoch]).permutation(samples)
    order.flags.writeable = False
    return order
