"""The register tiles of a weight gradient: products of a strip of pixels, added to sums in memory.

With (dh, dw) the offset of tap k,
``dw[k, ci, co] += Σ x[n, h · strides[0] + dh, w · strides[1] + dw, ci] · dy[n, h, w, co]`` over
the rows of a strip of some images, x being zero outside its bounds: so for each tap the sum runs
over the rectangle of output pixels that read inside, which is known beforehand.

A register tile holds some input channels × some vectors of output channels and walks over the
pixels of the strip, which stays in the first-level cache for all taps and tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import Var

from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.pack import panel_vectors
from ttsnn.passes.cpu.kernels.register_tile import RegisterTile, chunks, pick
from ttsnn.passes.cpu.kernels.stream import for_channels
from ttsnn.passes.cpu.kernels.tiles import register_rows
from ttsnn.passes.cpu.kernels.workspace import Array
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.layers.panels import panels
from ttsnn.passes.tir.body import Body, at_most, i64, load, splat, vector

__all__ = ["STRIP_PIXELS", "GradTiles", "Strip", "add_partial_sums"]

STRIP_BYTES = 48 * 1024
"""What a strip of x and dy may take: the first-level cache."""

STRIP_PIXELS = (32, 256)
"""Fewest and most output pixels of a strip; the fewest pay for loading a register tile."""

FINAL_UNIT = 4096
"""Elements of the result that a unit of the final sum adds up."""


@dataclass(frozen=True)
class Strip:
    """Some output rows of some images.

    Attributes:
        n0, n1: images.
        h0: first output row.
    """

    n0: Expr
    n1: Expr
    h0: Expr


class GradTiles:
    """Sums for one convolution; results are at ``base + (k · rows + ci) · Cout + co`` of ``out``.

    Args:
        body: where statements go.
        stage: the forward convolution; ``in_channels`` are those that x has in memory.
        rows: the first so many of them have sums.
        dtype: of dy and the sums.
        isa: vector width and registers.
    """

    def __init__(self, body: Body, stage: Stage, rows: int, dtype: str, isa: Isa) -> None:
        self.body, self.stage, self.dtype = body, stage, dtype
        self.lanes = isa.lanes(dtype)
        self.ho, self.wo = stage.out_size
        self.cin, self.cout = rows, stage.out_channels
        self.size = len(stage.taps) * self.cin * self.cout
        found = panels(self.cout, self.lanes, panel_vectors(isa))
        self.panels = [(a, min(n, self.cout - a)) for a, n in found]
        widest = max(len(chunks(n, self.lanes)) for _, n in self.panels)
        self.rows = _tile_rows(self.cin, register_rows(isa, widest))
        self.tiles, self.rest = divmod(self.cin, self.rows)
        pixels = _strip_pixels(stage.in_channels + self.cout, dtype)
        self.strip_rows = max(1, min(self.ho, pixels // self.wo))
        self.image_block = 1
        if self.strip_rows == self.ho:
            self.image_block = max(1, pixels // (self.ho * self.wo))

    @property
    def strips(self) -> int:
        """Strips of an image."""
        return -(-self.ho // self.strip_rows)

    def zero(self, out: Var, base: Expr, first: Expr, channels: Expr) -> None:
        """Start the sums of some input channels at zero."""
        b = self.body
        with b.loop(len(self.stage.taps), "tap") as tap, b.loop(channels, "ci") as ci:
            at = b.bind(base + (tap * self.cin + first + ci) * self.cout, "at")

            def clear(c: Expr, n: int) -> None:
                b.store(out, splat(0.0, self.dtype, n), vector(at + c, n))

            for_channels(b, self.cout, self.lanes, clear)

    def numbers(self, x: Array, strip: Strip) -> Array:
        """The part of x, spikes stored as bytes, that a strip reads, as numbers."""
        b, stage = self.body, self.stage
        sh, offsets = stage.strides[0], [t[0] for t in stage.taps]
        height = stage.in_size[0]
        rows = min(height, (self.strip_rows - 1) * sh + max(offsets) - min(offsets) + 1)
        size = rows * x.row_stride
        buffer = b.alloc(self.image_block * size, self.dtype, "numbers")
        low = at_most(tirx.max(i64(0), strip.h0 * sh + min(offsets)), height - rows)
        low = b.bind(low, "row_low")
        with b.loop(strip.n1 - strip.n0, "n") as n:
            source = b.bind(x.at(strip.n0 + n, low, 0), "from")
            target = b.bind(n * size, "to")

            def copy(at: Expr, n: int) -> None:
                value = load(x.buffer, vector(source + at, n))
                value = value.astype(self.dtype if n == 1 else f"{self.dtype}x{n}")
                b.store(buffer, value, vector(target + at, n))

            for_channels(b, size, self.lanes, copy)
        base = b.bind(i64(0) - strip.n0 * size - low * x.row_stride, "numbers_at")
        return Array(buffer, base, size, x.width, 0, x.channels)

    def add(
        self,
        out: Var,
        base: Expr,
        x: Array,
        dy: Array,
        strip: Strip,
        tiles: tuple[Expr | int, Expr | int] | None = None,
        with_rest: Expr | None = None,
    ) -> None:
        """Add a strip's products.

        Args:
            out, base: the sums.
            x, dy: images are at their "timesteps"; x may hold spikes as bytes.
            strip: what to sum over.
            tiles: which register tiles of input channels; None for all.
            with_rest: whether the channels beyond whole tiles are summed; None: they are.
        """
        b = self.body
        low, high = tiles or (0, self.tiles)
        if str(x.buffer.dtype) != self.dtype:
            x = self.numbers(x, strip)
        with b.loop(len(self.stage.taps), "tap") as tap:
            area = self._area(tap, strip)
            at = b.bind(base + tap * (self.cin * self.cout), "tap_at")
            with b.loop(high - low, "tile") as tile:
                ci = b.bind((low + tile) * self.rows, "ci")
                self._panels(out, at, x, dy, ci, self.rows, area)
            if self.rest:
                first = i64(self.tiles * self.rows)
                if with_rest is None:
                    self._panels(out, at, x, dy, first, self.rest, area)
                else:
                    with b.when(with_rest):
                        self._panels(out, at, x, dy, first, self.rest, area)

    def _area(self, tap: Expr, strip: Strip) -> _Area:
        """Images, rows and columns of a strip that a tap sees inside the image."""
        b, stage = self.body, self.stage
        spans = [
            [_inside(t[a], stage.strides[a], stage.in_size[a], stage.out_size[a]) for a in (0, 1)]
            for t in stage.taps
        ]
        top, left = (pick(tap, [s[a][0] for s in spans]) for a in (0, 1))
        bottom, right = (pick(tap, [s[a][1] for s in spans]) for a in (0, 1))
        y0 = b.bind(tirx.max(i64(top), strip.h0), "y0")
        y1 = b.bind(at_most(i64(bottom), strip.h0 + self.strip_rows), "y1")
        return _Area(
            strip,
            (y0, y1),
            b.bind(i64(left), "x0"),
            b.bind(right - left, "columns"),
            b.bind(pick(tap, [t[0] for t in stage.taps]), "dh"),
            b.bind(pick(tap, [t[1] for t in stage.taps]), "dw"),
        )

    def _panels(
        self, out: Var, at: Expr, x: Array, dy: Array, ci: Expr, rows: int, area: _Area
    ) -> None:
        """All panels of output channels for ``rows`` input channels from ``ci`` on."""
        groups: list[list[tuple[int, int]]] = []
        for panel in self.panels:
            if groups and groups[-1][0][1] == panel[1]:
                groups[-1].append(panel)
            else:
                groups.append([panel])
        for group in groups:
            with self.body.loop(len(group), "panel") as i:
                start, width = group[0]
                co = self.body.bind(start + i * width, "co")
                self._tile(out, at, x, dy, (ci, rows), (co, width), area)

    def _tile(
        self,
        out: Var,
        at: Expr,
        x: Array,
        dy: Array,
        tile: tuple[Expr, int],
        panel: tuple[Expr, int],
        area: _Area,
    ) -> None:
        b, (sh, sw) = self.body, self.stage.strides
        (ci, rows), (co, width) = tile, panel
        strip, (y0, y1) = area.strip, area.rows
        acc = RegisterTile(b, self.dtype, (1, 1, rows), chunks(width, self.lanes))
        acc.start()
        with b.loop(strip.n1 - strip.n0, "n") as n, b.loop(y1 - y0, "y") as y:
            image, row = strip.n0 + n, y0 + y
            x_at = x.at(image, row * sh + area.dh, area.column * sw + area.dw) + ci
            x_at = b.bind(x_at, "x_at")
            dy_at = b.bind(dy.at(image, row, area.column) + co, "dy_at")
            with b.loop(area.columns, "x") as column:
                here = dy_at + column * dy.channels
                loaded = [
                    b.bind(load(dy.buffer, vector(here + c, n_)), "g") for c, n_ in acc.vectors
                ]
                with acc.pixels() as p:
                    a = b.bind(load(x.buffer, x_at + column * (sw * x.channels) + p[2]), "a")
                    for (c, n_), g in zip(acc.vectors, loaded):
                        acc.set(acc.get(p, c, n_) + splat(a, self.dtype, n_) * g, p, c, n_)
        with acc.pixels() as p:
            to = b.bind(at + (ci + p[2]) * self.cout + co, "out")
            for c, n_ in acc.vectors:
                where = vector(to + c, n_)
                b.store(out, load(out, where) + acc.get(p, c, n_), where)


@dataclass(frozen=True)
class _Area:
    """The part of a strip that a tap sees inside the image."""

    strip: Strip
    rows: tuple[Expr, Expr]
    column: Expr
    columns: Expr
    dh: Expr
    dw: Expr


def add_partial_sums(b: Body, out: Var, dw: Var, units: int, size: int, lanes: int) -> None:
    """``dw[i] = Σ out[u · size + i]`` over the units u, in order."""
    with b.loop(-(-size // FINAL_UNIT), "part", "parallel") as part:
        start = b.bind(part * FINAL_UNIT, "start")
        count = b.bind(at_most(size - start, FINAL_UNIT), "count")

        def add(at: Expr, n: int) -> None:
            total = load(out, vector(at, n))
            for u in range(1, units):
                total = total + load(out, vector(at + u * size, n))
            b.store(dw, total, vector(at, n))

        with b.loop(count // lanes, "i") as i:
            add(start + i * lanes, lanes)
        with b.loop(count % lanes, "i") as i:
            add(start + count // lanes * lanes + i, 1)


def _strip_pixels(channels: int, dtype: str) -> int:
    """Pixels of a strip that has so many channels in x and dy."""
    fewest, most = STRIP_PIXELS
    return max(fewest, min(most, STRIP_BYTES // (channels * (8 if dtype == "float64" else 4))))


def _tile_rows(channels: int, limit: int) -> int:
    """Input channels of a register tile: a divisor of all, unless that wastes registers."""
    limit = min(limit, channels)
    best = next(d for d in range(limit, 0, -1) if channels % d == 0)
    return best if 2 * best >= limit else limit


def _inside(offset: int, stride: int, size: int, out: int) -> tuple[int, int]:
    """Output positions [low, high) whose input ``position · stride + offset`` lies inside."""
    low = max(0, -(offset // stride))
    high = min(out, (size - 1 - offset) // stride + 1)
    return low, max(low, high)
