"""A compiled training step as a ``.ttsnn`` file, run with NumPy and TVM's runtime alone.

The manifest's ``info["train"]`` lists the arguments and results of ``main``, with the roles of
:data:`ttsnn.passes.training.ROLES`; the file's parameters are the values to start from, zeros for
those that it doesn't have.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ttsnn.artifact import Manifest, read_artifact, write_artifact
from ttsnn.errors import ArtifactError
from ttsnn.runtime.cpu import check_cpu
from ttsnn.runtime.devices import Place, place_of
from ttsnn.runtime.net import load_library
from ttsnn.runtime.tensors import as_tensor, from_tensor, kind_of
from ttsnn.runtime.threads import apply_threads, prepare
from ttsnn.specs import TensorSpec

if TYPE_CHECKING:
    from ttsnn.runtime.training.step import TrainStep

__all__ = ["Step", "load_step", "save_step"]

_KEPT = ("param", "buffer", "optimizer")
_GIVEN = ("input", "label")


class Step:
    """A training step: ``loss, logits = step(x, labels, lr)`` updates what it holds.

    Attributes:
        manifest: what the step is.
        place: where it runs.
        updates: steps made.
    """

    def __init__(self, module: Any, manifest: Manifest, values: dict[str, np.ndarray]) -> None:
        prepare()
        self.manifest = manifest
        self.place: Place = place_of(manifest.target, manifest.model)
        self._arguments = manifest.info["train"]["arguments"]
        self._results = manifest.info["train"]["results"]
        self._initial = values
        self._machine = self.place.machine(module)
        self._function = self._machine["main"]
        self._lr: tuple[Any, Any] = (None, None)
        self.reset()

    def reset(self) -> None:
        """Start again from the values of the file."""
        self.updates = 0
        self._values: dict[str, Any] = {}
        for slot in self._arguments:
            if slot["role"] in _KEPT:
                value = self._initial.get(slot["name"])
                if value is None:
                    value = np.zeros(slot["shape"], slot["dtype"])
                self._values[slot["name"]] = self.place.upload(np.array(value))

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Copies of the parameters, buffers and the optimizer's state, by name."""
        return {k: v.numpy() for k, v in self._values.items()}

    def __call__(self, x: Any, labels: Any, lr: Any = 0.1, threads: int | None = None) -> Any:
        """One update.

        Args:
            x: the batch; NumPy arrays and PyTorch tensors as in :class:`ttsnn.runtime.net.Net`.
            labels: class indices, int64 [N].
            lr: learning rate.
            threads: CPU threads.

        Returns:
            Loss [] before the update, and logits, both of the kind of ``x``.

        Raises:
            DataError: shape, dtype or device is wrong.
            DeviceError: the device fails.
        """
        given = {"input": x, "label": labels}
        arguments = []
        for slot in self._arguments:
            if slot["role"] in _GIVEN:
                spec = TensorSpec(slot["name"], tuple(slot["shape"]), slot["dtype"])
                value = given[slot["role"]]
                arguments.append(as_tensor(value, spec, {}, self.manifest.alignment, self.place))
            elif slot["role"] == "lr":
                arguments.append(self._rate(np.asarray(np.asarray(lr).item(), slot["dtype"])))
            elif slot["role"] == "step":
                number = np.asarray(self.updates + 1, slot["dtype"])
                arguments.append(self.place.upload(number))
            else:
                arguments.append(self._values[slot["name"]])
        apply_threads(threads)
        kind = kind_of(x)
        with self.place.errors(), self.place.stream(kind):
            results = self._function(*arguments)
        told: dict[str, Any] = {}
        for slot, value in zip(self._results, results, strict=True):
            if slot["role"] in _KEPT:
                self._values[slot["name"]] = value
            else:
                told.setdefault(slot["role"], value)
        self.updates += 1
        return tuple(from_tensor(told[k], kind, self.place) for k in ("loss", "output"))

    def _rate(self, lr: np.ndarray) -> Any:
        """The learning rate on the device; copied where it changes, as a copy waits for the GPU."""
        if self._lr[0] != lr:
            self._lr = lr, self.place.upload(lr)
        return self._lr[1]


def load_step(path: str | os.PathLike) -> Step:
    """Load a training step.

    Raises:
        ArtifactError: missing, damaged, for another machine, or no training step.
        DeviceError: it needs a GPU, and there is none that fits.
    """
    artifact = read_artifact(path)
    if "train" not in artifact.manifest.info:
        raise ArtifactError(f"{path}: a network for inference, no training step; load it as one")
    check_cpu(artifact.path, artifact.manifest.target)
    place_of(artifact.manifest.target, str(artifact.path))
    return Step(load_library(artifact), artifact.manifest, artifact.params)


def save_step(step: TrainStep, path: str | os.PathLike, *, model: str = "network") -> int:
    """Write a compiled step of one process; returns the file's size in bytes.

    Raises:
        ArtifactError: it cannot be linked or written.
    """
    from dataclasses import asdict

    from ttsnn.driver import link_library, target_entry, versions

    signature = step.manifest.functions["main"]
    slots = {s.name: s for s in signature.arguments if s.role in _KEPT}
    values = {
        name: np.asarray(value, slots[name].dtype)
        for name, value in step.initial.items()
        if name in slots and np.any(value)
    }
    specs = {
        role: TensorSpec(slot.name, slot.shape, slot.dtype)
        for slot in (*signature.arguments, *signature.results)
        for role in [slot.role]
        if role in ("input", "label", "lr", "loss", "output")
    }
    manifest = Manifest(
        model=model,
        target=target_entry(step.target),
        versions=versions(),
        inputs=tuple(specs[k] for k in ("input", "label", "lr")),
        outputs=tuple(specs[k] for k in ("loss", "output")),
        params=tuple(values),
        alignment=step.target.input_alignment,
        info={
            **step.target.build_info(),
            "train": {
                "arguments": [asdict(s) for s in signature.arguments],
                "results": [asdict(s) for s in signature.results],
                "options": step.manifest.options,
            },
        },
    )
    return write_artifact(path, manifest, values, link_library(step.executable))
