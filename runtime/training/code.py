"""Training programs as code: compiled here, called by the names of their manifest's slots."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from ttsnn.errors import DataError
from ttsnn.passes.training import Manifest, Slot
from ttsnn.runtime.tensors import aligned_copy, kind_of
from ttsnn.runtime.threads import apply_threads, prepare
from ttsnn.targets import get_target

__all__ = ["TrainingCode", "UnscheduledWarning", "build_training", "share"]

Values = Callable[[Slot], Any]


class UnscheduledWarning(UserWarning):
    """Some kernels run as plain loops, many times slower than they could."""


@dataclass
class TrainingCode:
    """A compiled training program.

    Attributes:
        manifest: arguments and results of each function.
        executable: TVM's.
        fallbacks: names of kernels without a schedule.
        compile_s: seconds that compiling took.
        planned_bytes: function → bytes of the buffers between its kernels.
    """

    manifest: Manifest
    executable: Any
    fallbacks: tuple[str, ...]
    compile_s: float
    planned_bytes: dict[str, int]

    def __post_init__(self) -> None:
        prepare()
        self._local = threading.local()

    def call(
        self, name: str, values: Values, threads: int | None = None
    ) -> dict[tuple[str, str], Any]:
        """Run a function.

        Args:
            name: ``main``, ``forward`` or ``backward``.
            values: gives the TVM tensor for each argument's slot.
            threads: CPU threads of this call.

        Returns:
            (role, name) → TVM tensor, in the order of the results.
        """
        signature = self.manifest.functions[name]
        arguments = [values(slot) for slot in signature.arguments]
        apply_threads(threads)
        results = self._machine()[name](*arguments)
        return {(s.role, s.name): r for s, r in zip(signature.results, results, strict=True)}

    def _machine(self) -> Any:
        machine = getattr(self._local, "machine", None)
        if machine is None:
            machine = tvm.runtime.vm.VirtualMachine(self.executable, tvm.cpu())
            self._local.machine = machine
        return machine


def build_training(mod: tvm.IRModule, target: str = "cpu") -> TrainingCode:
    """Compile a training program (:mod:`ttsnn.passes.training`).

    Kernels that no schedule rule took are named in a :class:`UnscheduledWarning`.

    Raises:
        TargetError: the target cannot train.
    """
    start = time.perf_counter()
    chosen = get_target(target)
    manifest = Manifest.of(mod)
    lowered = chosen.lower_training(mod)
    executable = chosen.build(lowered)
    fallbacks = tuple(k.name for k in chosen.kernels(lowered) if not k.scheduled)
    if fallbacks:
        shown = ", ".join(fallbacks[:5]) + (" …" if len(fallbacks) > 5 else "")
        warnings.warn(
            f"training code for {target}: {len(fallbacks)} kernel(s) have no schedule and run as "
            f"plain loops, many times slower than they could: {shown}",
            UnscheduledWarning,
            stacklevel=2,
        )
    seconds = time.perf_counter() - start
    planned = chosen.planned_bytes(lowered)
    return TrainingCode(manifest, executable, fallbacks, seconds, planned)


def share(value: Any, slot: Slot) -> Any:
    """A value as a TVM tensor that shares its memory, where it is contiguous.

    Args:
        value: PyTorch tensor, NumPy array, number, or already a TVM tensor.
        slot: what it must be.

    Raises:
        DataError: dtype, shape or device do not fit.
    """
    if isinstance(value, (int, float)):
        return tvm.runtime.tensor(np.asarray(value, slot.dtype))
    is_torch = kind_of(value) == "torch"
    if not is_torch and not isinstance(value, np.ndarray):
        return value
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype != slot.dtype or tuple(value.shape) != slot.shape:
        raise DataError(
            f"{slot.role} {slot.name} must be {slot.dtype} {list(slot.shape)}, got {dtype} "
            f"{list(value.shape)}"
        )
    if is_torch:
        if value.device.type != "cpu":
            raise DataError(f"{slot.role} {slot.name} is on {value.device}; use CPU tensors")
        return tvm_ffi.from_dlpack(value.detach().contiguous())
    if not (value.flags.c_contiguous and value.flags.writeable):
        value = aligned_copy(value, 64)
    return tvm_ffi.from_dlpack(value)


def to_torch(tensor: Any) -> Any:
    """A TVM tensor as a PyTorch tensor over the same memory."""
    return sys.modules["torch"].from_dlpack(tensor)


def to_numpy(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """TVM tensors as NumPy arrays over the same memory."""
    return {k: np.from_dlpack(v) for k, v in values.items()}
