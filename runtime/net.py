"""Compiled networks as callables.

Needs NumPy and TVM's runtime library alone (``TVM_USE_RUNTIME_LIB=1``); PyTorch tensors are
recognised where PyTorch happens to be loaded.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm.runtime.vm

from ttsnn.artifact import Artifact, Manifest, read_artifact
from ttsnn.errors import ArtifactError, DataError
from ttsnn.runtime.cpu import check_cpu
from ttsnn.runtime.devices import Place, place_of
from ttsnn.runtime.tensors import as_tensor, from_tensor, kind_of
from ttsnn.runtime.threads import apply_threads, check_threads, prepare
from ttsnn.specs import TensorSpec

__all__ = ["Net", "load"]


class Net:
    """A compiled network: ``net(x)``.

    Takes and returns NumPy arrays or PyTorch tensors; the result's type follows the first
    input's. Arrays are shared with the compiled code through DLPack without a copy. An input
    that is not contiguous, or not aligned to ``manifest.alignment`` bytes (PyTorch's tensors
    are; NumPy aligns to 16), is copied once.

    Any number of threads may call one net at the same time: each gets its own virtual machine
    over the same code and the same parameters. A network with state (``net.state``) carries it
    from call to call, so its calls take turns.

    On a GPU, PyTorch's CUDA tensors are shared and the call goes to PyTorch's current stream;
    other inputs are copied to the GPU and results back.

    Attributes:
        manifest: what the network is, see :class:`ttsnn.artifact.Manifest`.
        threads: CPU threads of each call; None for the process's default.
    """

    def __init__(
        self,
        module: Any,
        manifest: Manifest,
        params: Mapping[str, np.ndarray],
        *,
        threads: int | None = None,
    ) -> None:
        """Wrap a loaded library.

        Args:
            module: TVM module with ``vm_load_executable``, or an executable that can be jitted.
            manifest: its description.
            params: values for ``manifest.params``, copied once, before the first call.
            threads: see the class.
        """
        prepare()
        self._module = module
        self.manifest = manifest
        self._host_params = params
        self._local = threading.local()
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {}
        self.threads = threads
        carried = {entry.input: entry.output for entry in manifest.state}
        self._state_outputs = carried
        self._inputs = tuple(s for s in manifest.inputs if s.name not in carried)
        self._result = [i for i in range(len(manifest.outputs)) if i not in set(carried.values())]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a call takes (state is not among them)."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What a call returns (state is not among them)."""
        return tuple(self.manifest.outputs[i] for i in self._result)

    @property
    def threads(self) -> int | None:
        """CPU threads of each call; None: as ``ttsnn.threads`` or the environment says."""
        return self._threads

    @threads.setter
    def threads(self, count: int | None) -> None:
        check_threads(count)
        self._threads = count

    def __call__(self, *args: Any, threads: int | None = None, **named: Any) -> Any:
        """Run the network.

        Args:
            args: the inputs, in the order of :attr:`inputs`; ``named`` gives them by name.
            threads: CPU threads of this call.

        Returns:
            The output, or a tuple of them where there are several.

        Raises:
            DataError: number, shape, dtype or device of the inputs is wrong.
        """
        check_threads(threads)
        values = self._arguments(args, named)
        sizes: dict[str, int] = {}
        tensors = {
            spec.name: as_tensor(value, spec, sizes, self.manifest.alignment, self.place)
            for spec, value in zip(self._inputs, values)
        }
        kind = kind_of(values[0]) if values else "numpy"
        if self._state_outputs:
            with self._lock:
                state = self._state or self.initial_state(sizes)
                self._check_state(state, sizes)
                with self.place.stream(kind):
                    results = self._run({**tensors, **state}, threads)
                self._state = {k: results[i] for k, i in self._state_outputs.items()}
        else:
            with self.place.stream(kind):
                results = self._run(tensors, threads)
        out = tuple(from_tensor(results[i], kind, self.place) for i in self._result)
        return out[0] if len(out) == 1 else out

    def function(self) -> Any:
        """The calling thread's entry: inputs (state included), then parameters, as tensors."""
        function = getattr(self._local, "function", None)
        if function is None:
            self._local.machine = self.machine()
            function = self._local.function = self._local.machine["main"]
        return function

    def machine(self) -> Any:
        """A new virtual machine over this network's library."""
        return self.place.machine(self._module)

    @functools.cached_property
    def place(self) -> Place:
        """Where the network runs; found on first use, so that it can be compiled elsewhere.

        Raises:
            DeviceError: the network needs a GPU, and there is none that fits.
        """
        return place_of(self.manifest.target, self.manifest.model)

    @functools.cached_property
    def parameters(self) -> list[Any]:
        """The parameters as TVM tensors on the device, in the order of ``manifest.params``."""
        return [self.place.upload(self._host_params[k]) for k in self.manifest.params]

    def _run(self, tensors: Mapping[str, Any], threads: int | None) -> Any:
        apply_threads(threads or self._threads)
        ordered = [tensors[spec.name] for spec in self.manifest.inputs]
        with self.place.errors():
            results = self.function()(*ordered, *self.parameters)
        return results if len(self.manifest.outputs) > 1 or _is_sequence(results) else [results]

    def _arguments(self, args: tuple, named: Mapping[str, Any]) -> list[Any]:
        names = [s.name for s in self._inputs]
        expected = ", ".join(
            f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in self._inputs
        )
        unknown = [k for k in named if k not in names[len(args) :]]
        missing = [k for k in names[len(args) :] if k not in named]
        if unknown or missing or len(args) > len(names):
            got = [f"{len(args)} by position", *named]
            raise DataError(
                f"{self.manifest.model} takes {len(names)} input(s): {expected}; "
                f"got {', '.join(got)}"
            )
        return [*args, *(named[k] for k in names[len(args) :])]

    # --- state -------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the state: the next call starts from its initial value, with any batch size."""
        with self._lock:
            self._state = {}

    @property
    def state(self) -> dict[str, np.ndarray]:
        """The state after the last call, input name → array (copies); empty before the first."""
        with self._lock:
            return {k: v.numpy() for k, v in self._state.items()}

    @state.setter
    def state(self, values: Mapping[str, Any]) -> None:
        if not values:
            self.reset()
            return
        specs = {s.name: s for s in self.manifest.inputs if s.name in self._state_outputs}
        if set(values) != set(specs):
            raise DataError(
                f"state has the entries {', '.join(specs) or '(none)'}; got {', '.join(values)}"
            )
        sizes: dict[str, int] = {}
        tensors = {
            k: self.place.upload(as_tensor(v, specs[k], sizes, 1).numpy())
            for k, v in values.items()
        }
        with self._lock:
            self._state = tensors

    def initial_state(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The state before the first call, on the device; ``sizes`` gives symbolic sizes."""
        specs = {s.name: s for s in self.manifest.inputs}
        state = {}
        for entry in self.manifest.state:
            spec = specs[entry.input]
            shape = [sizes[d] if isinstance(d, str) else d for d in spec.shape]
            value = np.full(shape, entry.initial, spec.dtype)
            state[entry.input] = self.place.upload(value)
        return state

    def _check_state(self, state: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
        for spec in self.manifest.inputs:
            if spec.name not in state:
                continue
            expected = tuple(sizes.get(d, d) if isinstance(d, str) else d for d in spec.shape)
            got = tuple(int(d) for d in state[spec.name].shape)
            if got != expected:
                raise DataError(
                    f"{self.manifest.model}: its state {spec.name} is {list(got)} from the last "
                    f"call, this input needs {list(expected)}; call net.reset() first"
                )

    def __repr__(self) -> str:
        takes = ", ".join(f"{s.name}: {s.dtype}{list(s.shape)}" for s in self.inputs)
        gives = ", ".join(f"{s.dtype}{list(s.shape)}" for s in self.outputs)
        return f"<ttsnn net {self.manifest.model} ({takes}) -> ({gives})>"


def _is_sequence(value: Any) -> bool:
    return not hasattr(value, "shape") and hasattr(value, "__len__")


def load(path: str | os.PathLike, *, threads: int | None = None) -> Net:
    """Load a ``.ttsnn`` file.

    Args:
        path: the artifact.
        threads: CPU threads of each call; all available ones by default.

    Raises:
        ArtifactError: missing, damaged, of a newer format, or for another machine.
        DeviceError: it needs a GPU, and there is none that fits.
    """
    artifact = read_artifact(path)
    check_cpu(artifact.path, artifact.manifest.target)
    place_of(artifact.manifest.target, str(artifact.path))  # before the library needs the device
    return Net(load_library(artifact), artifact.manifest, artifact.params, threads=threads)


def load_library(artifact: Artifact) -> Any:
    """Load an artifact's shared library (through a temporary file that is gone afterwards)."""
    with tempfile.TemporaryDirectory(prefix="ttsnn-") as folder:
        file = Path(folder) / "lib.so"
        try:
            file.write_bytes(artifact.library)
            # the mapping outlives the file's name
            return tvm.runtime.load_module(str(file))
        except OSError as error:
            raise ArtifactError(
                f"{artifact.path}: cannot unpack the library to {folder}: "
                f"{error.strerror or error}; set TMPDIR to a folder with space"
            ) from error
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[-1]
            raise ArtifactError(
                f"{artifact.path}: the library cannot be loaded "
                f"({type(error).__name__}: {first}); if {folder} forbids executing files, set "
                f"TMPDIR elsewhere; the file was compiled with "
                f"{_versions(artifact.manifest)} on {sys.platform}"
            ) from error


def _versions(manifest: Manifest) -> str:
    return ", ".join(f"{k} {v}" for k, v in manifest.versions.items())
