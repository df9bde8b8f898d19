"""Shapes and dtypes of a network's inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TensorSpec"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: name of the tensor, unique among the inputs (or outputs).
        shape: sizes; a string names a symbolic size, e.g. ``("n", 3, 32, 32)``.
        dtype: ``"float32"``, ``"float64"``, ``"uint8"``, …
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str

    def to_json(self) -> dict:
        """Plain dict for manifests."""
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype}

    @classmethod
    def from_json(cls, data: dict) -> TensorSpec:
        """Inverse of :meth:`to_json`."""
        return cls(data["name"], tuple(data["shape"]), data["dtype"])
