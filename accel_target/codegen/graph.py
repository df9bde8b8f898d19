"""The network as the accelerator sees it: nodes over images and parameters in DRAM."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ttsnn.accel_target.codegen.builder import Geometry
from ttsnn.accel_target.events import Tag
from ttsnn.accel_target.isa import Format, Op

__all__ = [
    "Box",
    "Conv",
    "Graph",
    "Image",
    "Map",
    "Node",
    "Rows",
    "Small",
    "Sum",
    "Tensor",
    "WGrad",
    "Weight",
]


@dataclass(eq=False)
class Tensor:
    """A tensor in DRAM, if somebody wants it there.

    Attributes:
        shape: [frames, height, width, channels]; frames are timesteps times images.
        role, host_shape, host_axes, host_view: as in
            :class:`~ttsnn.accel_target.program.DramTensor`.
    """

    name: str
    shape: tuple[int, int, int, int]
    format: Format
    role: str = "temp"
    host_shape: tuple[int, ...] = ()
    host_axes: tuple[int, ...] = ()
    host_view: tuple[int, ...] = ()


@dataclass(frozen=True)
class Image:
    """Some timesteps of a tensor.

    Attributes:
        tensor: the tensor.
        step: first timestep.
        steps: how many.
        repeat: the tensor has one timestep, which stands for all.
    """

    tensor: Tensor
    step: int
    steps: int
    repeat: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return self.tensor.shape[1:]

    def once(self) -> Image:
        """The one timestep of an image that repeats."""
        return replace(self, steps=1, repeat=False)

    def part(self, step: int, steps: int) -> Image:
        """Some of its timesteps."""
        return replace(self, step=self.step if self.repeat else self.step + step, steps=steps)


@dataclass(frozen=True)
class Rows:
    """Rows of a parameter tile: which rows of which tensor stand at which row.

    ``add``: they are added to what stands there.
    """

    tensor: Tensor
    row: int
    count: int
    at: int
    add: bool = False


@dataclass(eq=False)
class Node:
    """One operation.

    Attributes:
        tag: what it belongs to.
        chain: number of the tensor-train layer's call that it is a part of, else -1.
        window: timesteps that it works on (first, how many), where it is a part of a layer.
    """

    tag: Tag
    chain: int = field(default=-1, kw_only=True)
    window: tuple[int, int] | None = field(default=None, kw_only=True)

    def reads(self) -> list[Image]:
        """Images that it reads."""
        return []

    def writes(self) -> list[Image]:
        """Images that it writes."""
        return []

    def params(self) -> list[Rows]:
        """Parameters that it reads."""
        return []

    def makes(self) -> list[Tensor]:
        """Parameters that it writes."""
        return []


@dataclass(eq=False)
class Weight:
    """A weight as [taps, input channels, output channels], and what it is made of."""

    shape: tuple[int, int, int]
    rows: tuple[Rows, ...]
    name: str
    format: Format = Format.WEIGHT


@dataclass(eq=False)
class Conv(Node):
    """``y = Σ conv(x, w)`` over the terms (image, weight, geometry, flags)."""

    terms: list[tuple[Image, Weight, Geometry, int]]
    y: Image
    transpose: bool = False

    def reads(self):
        return [t[0] for t in self.terms]

    def writes(self):
        return [self.y]

    def params(self):
        return [r for t in self.terms for r in t[1].rows]


@dataclass(eq=False)
class WGrad(Node):
    """Gradient of a weight; ``rows`` of it go to tensors."""

    x: Image
    dy: Image
    geometry: Geometry
    shape: tuple[int, int, int]
    rows: tuple[Rows, ...]
    flags: int = 0
    more: bool = False  # other timesteps have been written: add to them

    def reads(self):
        return [self.x, self.dy]

    def makes(self):
        return [r.tensor for r in self.rows]

    def params(self):
        return list(self.rows) if self.more else []


@dataclass(eq=False)
class Map(Node):
    """Pixel by pixel, or window by window (``geometry``)."""

    op: Op
    ins: list[Image]
    outs: list[Image]
    unit: str = "vector"
    rows: tuple[Rows, ...] = ()
    width: int = 0
    scalars: tuple[float, ...] = ()
    flags: int = 0
    geometry: Geometry | None = None
    transpose: bool = False
    time: bool = False

    def reads(self):
        return list(self.ins)

    def writes(self):
        return list(self.outs)

    def params(self):
        return list(self.rows)


@dataclass(eq=False)
class Sum(Node):
    """Sums over pixels and images into rows of a tensor, all of whose rows are such sums.

    ``more``: the tensor holds the sums over other timesteps already.
    """

    op: Op
    ins: list[Image]
    out: Tensor
    row: int = 0
    flags: int = 0
    rows: tuple[Rows, ...] = ()
    more: bool = False

    def reads(self):
        return list(self.ins)

    def params(self):
        return [*self.rows, *([Rows(self.out, 0, self.out.shape[1], 0)] if self.more else [])]

    def makes(self):
        return [self.out]


@dataclass(frozen=True)
class Box:
    """Some frames (first, count, step) and rows (first, count) of a tensor; None: all."""

    tensor: Tensor
    frames: tuple[int, int, int] | None = None
    rows: tuple[int, int] | None = None


@dataclass(eq=False)
class Small(Node):
    """One instruction on small tensors; an operand of several boxes has them row after row."""

    op: Op
    dst: Box
    srcs: list[tuple[Box, ...]]
    unit: str = "vector"
    scalars: tuple[float, ...] = ()
    flags: int = 0

    def makes(self):
        return [self.dst.tensor]

    def params(self):
        return [Rows(b.tensor, 0, 1, 0) for s in self.srcs for b in s]


@dataclass
class Graph:
    """Nodes in order; ``T`` timesteps, ``N`` images.

    Attributes:
        gradients: chain → gradient of the output that its backward begins with.
        whole: chains whose nest has all timesteps at once.
        joined: those of them that go on in the nest that makes their operand.
    """

    T: int
    N: int
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Image] = field(default_factory=list)
    gradients: dict[int, Image] = field(default_factory=dict)
    whole: set[int] = field(default_factory=set)
    joined: set[int] = field(default_factory=set)
