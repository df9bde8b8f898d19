"""Where a compiled network runs: the CPU, a GPU, or a GPU that the CPU emulates."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from ttsnn.errors import DeviceError

__all__ = ["Place", "place_of"]


class Place:
    """A device and the way to it.

    Attributes:
        device: TVM's.
        what: the network's name, for messages.
        host: whether the device's memory is the CPU's.
        emulated: whether it is the emulated GPU.
    """

    host = True
    emulated = False

    def __init__(self, device: Any, what: str) -> None:
        self.device = device
        self.what = what

    def machine(self, module: Any) -> Any:
        """A new virtual machine over a library."""
        _finish_libraries(module)
        return tvm.runtime.vm.VirtualMachine(module, self.device)

    def upload(self, array: np.ndarray) -> Any:
        """A copy of an array as a TVM tensor on the device.

        Raises:
            DeviceError: the device's memory is full.
        """
        with self.errors():
            return tvm.runtime.tensor(np.asarray(array, order="C"), self.device)

    def synchronize(self) -> None:
        """Wait until the device has done everything."""

    def errors(self) -> contextlib.AbstractContextManager:
        """Turns the device's errors into :class:`DeviceError`."""
        return contextlib.nullcontext()

    def stream(self, kind: str) -> contextlib.AbstractContextManager:
        """For calls whose inputs are of a kind (:func:`ttsnn.runtime.tensors.kind_of`)."""
        return contextlib.nullcontext()


class _Gpu(Place):
    """A GPU: calls return before they are done, and their errors may come with a later one."""

    host = False

    def synchronize(self) -> None:
        with self.errors():
            self.device.sync()

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        from ttsnn.cuda.runtime import device_error

        try:
            yield
        except Exception as error:
            ours = device_error(error, self.what)
            if ours is None or isinstance(error, DeviceError):
                raise
            raise ours from error

    def stream(self, kind: str) -> contextlib.AbstractContextManager:
        return tvm_ffi.use_torch_stream() if kind == "torch_cuda" else contextlib.nullcontext()


class _EmulatedGpu(_Gpu):
    """The emulated GPU: each allocation is new and exact, so that wrong accesses show."""

    emulated = True

    def machine(self, module: Any) -> Any:
        return tvm.runtime.vm.VirtualMachine(module, self.device, memory_cfg="naive")


def place_of(target: Mapping[str, Any], what: str) -> Place:
    """Where code runs that was compiled for a target.

    Args:
        target: the manifest's entry.
        what: the network's name, for messages.

    Raises:
        DeviceError: it needs a GPU, and there is none that fits.
        TargetError: it needs the emulated GPU, which this process cannot have.
    """
    name = target.get("name")
    if name == "cuda":
        from ttsnn.cuda.runtime import require_device

        return _Gpu(require_device(tuple(target.get("archs", ())), what), what)
    if name == "cuda-emulated":
        from ttsnn.cuda import emulator

        emulator.enable(order=target.get("order"))
        return _EmulatedGpu(tvm.cuda(0), what)
    if name == "ttsnn-accel":
        from ttsnn.accel_target.device import register

        register()
    return Place(tvm.cpu(), what)


def _finish_libraries(module: Any) -> None:
    """The last step of compiling in this process, on several threads.

    LLVM turns a library into machine code when it is asked for a function, any function; the
    virtual machine would ask one library after the other.
    """

    def finish(library: Any) -> None:
        with contextlib.suppress(AttributeError):
            library.get_function("")

    libraries = [m for m in _imported(getattr(module, "mod", module)) if m.kind == "llvm"]
    if len(libraries) > 1:
        with ThreadPoolExecutor(min(len(libraries), os.cpu_count() or 1)) as pool:
            list(pool.map(finish, libraries))


def _imported(module: Any) -> Iterator[Any]:
    """Everything that a library imports."""
    for library in module.imports:
        yield library
        yield from _imported(library)
