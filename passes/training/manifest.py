"""What the arguments and results of a training program are: :class:`Manifest`, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import tvm
from tvm import relax

from ttsnn.errors import PassError

__all__ = ["MANIFEST", "ROLES", "Manifest", "Signature", "Slot"]

MANIFEST = "ttsnn.train"
"""Module attribute of training programs: the manifest as JSON."""

ROLES = (
    "input",  # what the model is called with
    "state",  # state of the model that the caller carries from call to call
    "label",  # class indices, int64
    "lr",  # learning rate, float64 []
    "step",  # number of this update, int64 [], from 1
    "param",  # trainable parameter; as a result: its new value
    "buffer",  # float buffer or frozen parameter; as a result: its new value
    "optimizer",  # state of the optimizer, zeros at first; as a result: its new value
    "saved",  # what forward hands to backward
    "output",  # result of the model
    "loss",  # []
    "grad_output",  # gradient of a result of the model
    "grad",  # gradient of the parameter of that name
    "grad_input",  # gradient of the input of that name
    "grad_norm",  # global norm of the gradients before clipping, []
)


@dataclass(frozen=True)
class Slot:
    """One argument or result.

    Attributes:
        name: of the parameter (also for its gradient and its new value), buffer, input …;
            optimizer state is ``<parameter>.<kind>``.
        role: one of :data:`ROLES`.
        shape: sizes.
        dtype: ``"float32"`` …
    """

    name: str
    role: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"unknown role {self.role!r}")

    @classmethod
    def of(cls, name: str, role: str, expr: relax.Expr) -> Slot:
        """The slot of an expression that has a static tensor type."""
        return cls(name, role, tuple(int(s) for s in expr.ty.shape.values), str(expr.ty.dtype))


@dataclass(frozen=True)
class Signature:
    """Arguments and results of one function, in order; results are one flat tuple."""

    arguments: tuple[Slot, ...]
    results: tuple[Slot, ...]

    def named(self, kind: str, role: str) -> dict[str, int]:
        """Name → position of the arguments or results (``kind``) that have a role."""
        slots = {"arguments": self.arguments, "results": self.results}[kind]
        return {s.name: i for i, s in enumerate(slots) if s.role == role}


@dataclass(frozen=True)
class Manifest:
    """Signatures of a training program's functions, and what it was built with.

    Attributes:
        functions: function name → signature.
        batch_norm: one entry a batch norm on batch statistics: ``name`` of the layer,
            ``momentum``, ``epsilon``, ``calls`` (times it runs in one forward: what PyTorch adds
            to ``num_batches_tracked``).
        options: loss, optimizer, clipping … as they were given.
    """

    functions: dict[str, Signature]
    batch_norm: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)

    def attach(self, mod: tvm.IRModule) -> tvm.IRModule:
        """The module with this manifest as its attribute ``ttsnn.train``."""
        return mod.with_attr(MANIFEST, json.dumps(asdict(self)))

    @classmethod
    def of(cls, mod: tvm.IRModule) -> Manifest:
        """The manifest of a training program.

        Raises:
            PassError: where the module has none.
        """
        if mod.attrs is None or MANIFEST not in mod.attrs:
            raise PassError("this module is no training program; make one with build_train_step")
        data = json.loads(str(mod.attrs[MANIFEST]))
        functions = {
            name: Signature(_slots(f["arguments"]), _slots(f["results"]))
            for name, f in data["functions"].items()
        }
        return cls(functions, tuple(data["batch_norm"]), data["options"])


def _slots(entries: Iterable[dict[str, Any]]) -> tuple[Slot, ...]:
    return tuple(Slot(e["name"], e["role"], tuple(e["shape"]), e["dtype"]) for e in entries)
