"""Training programs as code: compiled here, called by the names of their manifest's slots."""

from __future__ import annotations

import functools
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from ttsnn.errors import DataError
from ttsnn.passes.training import Manifest, Slot
from ttsnn.runtime.devices import Place, place_of
from ttsnn.runtime.tensors import aligned_copy, kind_of
from ttsnn.runtime.threads import apply_threads, prepare
from ttsnn.targets import Target, get_target

__all__ = ["TrainingCode", "UnscheduledWarning", "build_training", "share", "to_numpy", "to_torch"]

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
        target: name and what else :func:`ttsnn.runtime.devices.place_of` wants.
    """

    manifest: Manifest
    executable: Any
    fallbacks: tuple[str, ...]
    compile_s: float
    planned_bytes: dict[str, int]
    target: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        prepare()
        self._local = threading.local()

    @functools.cached_property
    def place(self) -> Place:
        """Where the code runs.

        Raises:
            DeviceError: it needs a GPU, and there is none that fits.
        """
        return place_of(self.target, "training code")

    def call(
        self,
        name: str,
        values: Values,
        threads: int | None = None,
        *,
        keep: Collection[str] = (),
        kind: str = "numpy",
    ) -> dict[tuple[str, str], Any]:
        """Run a function.

        Args:
            name: ``main``, ``forward`` or ``backward``.
            values: gives the TVM tensor for each argument's slot; a GPU's code copies those of
                the CPU to it.
            threads: CPU threads of this call.
            keep: roles of results that stay on the GPU; others are copied to the CPU.
            kind: ``"torch_cuda"`` where the caller has PyTorch's CUDA tensors: the call goes to
                PyTorch's current stream, and all results stay on the GPU.

        Returns:
            (role, name) → TVM tensor, in the order of the results.

        Raises:
            DeviceError: a GPU fails, or its memory is full.
        """
        signature = self.manifest.functions[name]
        place = self.place
        arguments = [values(slot) for slot in signature.arguments]
        if not place.host:
            arguments = [a if _on_gpu(a) else place.upload(a.numpy()) for a in arguments]
        apply_threads(threads)
        with place.errors(), place.stream(kind):
            results = self._machine()[name](*arguments)
            named = {(s.role, s.name): r for s, r in zip(signature.results, results, strict=True)}
            if place.host or kind == "torch_cuda":
                return named
            return {
                k: r if k[0] in keep else tvm.runtime.tensor(r.numpy()) for k, r in named.items()
            }

    def _machine(self) -> Any:
        machine = getattr(self._local, "machine", None)
        if machine is None:
            machine = self.place.machine(self.executable)
            self._local.machine = machine
        return machine


def build_training(mod: tvm.IRModule, target: str | Target = "cpu") -> TrainingCode:
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
    entry = {"name": chosen.name, **chosen.manifest_entry()}
    return TrainingCode(manifest, executable, fallbacks, seconds, planned, entry)


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
    is_torch = kind_of(value) != "numpy"
    if not is_torch and not isinstance(value, np.ndarray):
        return value
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype != slot.dtype or tuple(value.shape) != slot.shape:
        raise DataError(
            f"{slot.role} {slot.name} must be {slot.dtype} {list(slot.shape)}, got {dtype} "
            f"{list(value.shape)}"
        )
    if is_torch:
        return tvm_ffi.from_dlpack(value.detach().contiguous())
    if not (value.flags.c_contiguous and value.flags.writeable):
        value = aligned_copy(value, 64)
    return tvm_ffi.from_dlpack(value)


def to_torch(tensor: Any) -> Any:
    """A TVM tensor as a PyTorch tensor over the same memory; that of an emulated GPU as a copy."""
    torch = sys.modules["torch"]
    if _on_gpu(tensor) and not torch.cuda.is_available():
        return torch.from_numpy(tensor.numpy())
    return torch.from_dlpack(tensor)


def to_numpy(tensor: Any) -> np.ndarray:
    """A TVM tensor as a NumPy array: over the same memory, or a copy of what is on a GPU."""
    return tensor.numpy() if _on_gpu(tensor) else np.from_dlpack(tensor)


def _on_gpu(tensor: Any) -> bool:
    return tensor.device.type == "cuda"
