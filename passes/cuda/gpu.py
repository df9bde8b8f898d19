"""What the kernels need to know of a GPU."""

from __future__ import annotations

import re
from dataclasses import dataclass

import tvm

from ttsnn.errors import TargetError

__all__ = ["DEFAULT_ARCH", "SCHEDULERS", "Gpu", "gpu_of", "parse_arch"]

DEFAULT_ARCH = "sm_90"
"""What is compiled for where no GPU is in the machine and none was named: H100 and H200."""


SCHEDULERS = 4
"""Schedulers of a multiprocessor, each of which issues an instruction a cycle."""


@dataclass(frozen=True)
class Gpu:
    """Properties of a GPU that tiles are chosen by.

    Attributes:
        arch: ``"sm_90"``.
        multiprocessors: how many share the blocks.
        lanes: float32 multiply-adds of a multiprocessor in a cycle.
        shared: bytes of static shared memory that a block can have.
        resident_threads: most threads of a multiprocessor.
        registers: of a multiprocessor.
        shared_together: bytes of shared memory for all blocks of one; the rest is its cache.
        hiding_threads: threads of a multiprocessor that keep its lanes busy, a guess.
        l2_bytes: bytes that a multiprocessor gets from the second-level cache in a cycle, a guess.
    """

    arch: str
    multiprocessors: int
    lanes: int
    shared: int = 48 * 1024
    resident_threads: int = 2048
    registers: int = 64 * 1024
    shared_together: int = 160 * 1024
    hiding_threads: int = 512
    l2_bytes: float = 24.0

    def vector(self, dtype: str) -> int:
        """Elements of a 16-byte access."""
        return {"float64": 2, "float32": 4, "uint8": 4}.get(dtype, 4)


_MULTIPROCESSORS = {75: 40, 80: 108, 86: 84, 89: 128, 90: 132, 100: 148, 120: 170}
_LANES = {75: 64, 80: 64}


def parse_arch(text: str) -> int:
    """``"sm_90"`` → 90; ``"sm_90a"`` too.

    Raises:
        TargetError: for anything else, or a GPU that is too old.
    """
    found = re.fullmatch(r"(?:sm_)?(\d{2,3})[af]?", text.strip())
    number = int(found.group(1)) if found else 0
    if number < 70:
        raise TargetError(
            f"target cuda: arch must be sm_70 or newer, like sm_80 or sm_90, got {text!r}"
        )
    return number


def gpu_of(target: tvm.target.Target) -> Gpu:
    """The GPU of a ``cuda`` target; one that is not known counts as the next older one."""
    number = parse_arch(str(target.attrs["arch"]))
    known = [a for a in _MULTIPROCESSORS if a <= number] or [75]
    near = max(known)
    return Gpu(str(target.attrs["arch"]), _MULTIPROCESSORS[near], _LANES.get(number, 128))
