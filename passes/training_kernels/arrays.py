"""Kernels that pass once over images: their arguments, and the loops that each target has for it.

Everything between two convolutions is of this kind: normalisation, neurons, sums of gradients
over pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.tir.body import Body, as_vector, i64, load, vector
from ttsnn.passes.tir.finished import finished

__all__ = ["WIDE", "Arrays", "Element", "Registers", "Shape", "StreamTotals", "Terms", "Totals"]

Shape = Sequence[int]
WIDE = "float64"
"""dtype of sums over pixels."""

Element = Callable[[Expr, Expr, int], None]
"""``element(offset, channel, lanes)`` writes what is done to some neighbouring elements."""

Terms = Callable[[Expr, Expr, int], Sequence[Expr]]
"""``terms(offset, channel, lanes)``: what some neighbouring elements add to the sums, ``WIDE``."""


class Totals(ABC):
    """Sums over pixels of each channel."""

    @abstractmethod
    def total(self, which: int, channel: Expr) -> Expr:
        """A channel's sum over all pixels, within :meth:`Arrays.each_channel`."""


class StreamTotals(Totals):
    """Sums beside the work of a stream."""

    @abstractmethod
    def add(self, which: int, channel: Expr, lanes: int, value: Expr) -> None:
        """Add ``WIDE`` values to the sums of channels ``channel …``, within the stream."""


class Arrays(ABC):
    """Arguments of a kernel over images of one shape, as flat views; and loops over them.

    Args:
        b: where statements go.
        shape: of the images, channels last; with time its first axes hold T · N images.
        dtype: of arguments.
        steps: T, where the kernel walks through time; else 1.
    """

    most_unrolled = 8
    """Timesteps up to which loops over time are unrolled, so that membranes stay in registers."""

    def __init__(self, b: Body, shape: Shape, dtype: str, steps: int = 1) -> None:
        self.b: Any = b
        self.shape, self.dtype, self.steps = tuple(shape), dtype, steps
        self.channels = shape[-1]
        self.pixels = prod(shape[:-1]) // steps
        self.step = self.pixels * self.channels
        self.kind = "unrolled" if steps <= self.most_unrolled else "serial"
        self.params: list[Var] = []

    # -- each target's own -------------------------------------------------------------------

    @abstractmethod
    def stream(self, element: Element, sums: Any = None) -> None:
        """``element`` for every vector of one timestep, in parallel.

        ``sums`` (:meth:`sums`) takes what ``element`` adds to them.
        """

    @abstractmethod
    def sums(self, count: int) -> Any:
        """:class:`StreamTotals` beside a stream that is yet to come."""

    @abstractmethod
    def channel_sums(self, terms: Terms, count: int) -> Totals:
        """``count`` sums a channel over all pixels, and nothing beside it."""

    @abstractmethod
    def each_channel(self, totals: Any) -> AbstractContextManager[Expr]:
        """A loop over the channels, after the pass that made ``totals``; yields the channel."""

    # -- arguments ---------------------------------------------------------------------------

    def image(self, name: str, dtype: str | None = None) -> Var:
        """An argument of the images' shape."""
        return self._argument(name, self.shape, self.step * self.steps, dtype or self.dtype)

    def state(self, name: str) -> Var:
        """An argument of one timestep."""
        shape = (self.shape[0], self.shape[1] // self.steps, *self.shape[2:])
        return self._argument(name, shape, self.step, self.dtype)

    def channel(self, name: str) -> Var:
        """An argument [channels]."""
        buffer = tirx.decl_buffer((i64(self.channels),), self.dtype, name)
        self.params.append(buffer)
        return buffer

    def _argument(self, name: str, shape: Shape, size: int, dtype: str) -> Var:
        buffer = tirx.decl_buffer([i64(s) for s in shape], dtype, name)
        self.params.append(buffer)
        return self.b.view(buffer, size, dtype, f"{name}_flat")

    # -- values ------------------------------------------------------------------------------

    def read(self, buffer: Var, at: Expr, lanes: int) -> Expr:
        """Some neighbouring elements, named."""
        return self.b.bind(load(buffer, vector(at, lanes)), buffer.name.split("_")[0])

    def local(self, name: str, lanes: int, steps: int = 1, dtype: str | None = None) -> Registers:
        """A vector for each timestep, in registers where time is unrolled."""
        dtype = dtype or self.dtype
        buffer = self.b.alloc(steps * lanes, dtype, name, scope="local")
        return Registers(self.b, buffer, lanes, dtype)

    def finish(self, rule: str) -> PrimFunc:
        """The function."""
        return finished(self.b, self.params, rule)


@dataclass(frozen=True)
class Registers:
    """Some neighbouring elements' values, at one or all timesteps."""

    b: Body
    buffer: Var
    lanes: int
    dtype: str

    @property
    def type(self) -> str:
        """TVM's name of a vector of these."""
        return as_vector(self.dtype, self.lanes)

    def get(self, t: Expr | int = 0) -> Expr:
        """The vector at a timestep."""
        return load(self.buffer, vector(t * self.lanes, self.lanes))

    def set(self, value: Expr, t: Expr | int = 0) -> None:
        """Replace it."""
        self.b.store(self.buffer, value, vector(t * self.lanes, self.lanes))

    def add(self, value: Expr) -> None:
        """Add to the first."""
        self.set(self.get() + value)
