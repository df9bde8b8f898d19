"""Weight gradient of a tap convolution: a matrix product that sums over the pixels of all images.

With (dh, dw) the offset of tap k,
``dw[k, ci, co] = Σ x[n, h · strides[0] + dh, w · strides[1] + dw, ci] · dy[n, h, w, co]`` over all
images and output pixels, x being zero outside its bounds: so for each tap the sum runs over the
rectangle of output pixels that read inside, which is known beforehand.

A register tile holds some input channels × some vectors of output channels and walks over the
pixels of a strip, which stays in the cache for all taps and tiles. Units of parallel work take
either some of the images, with a partial sum each, or some of the input channels. The partial
sums are added in a fixed order, so that results do not depend on the number of threads.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.finished import finished
from ttsnn.passes.cpu.kernels.pack import panel_vectors, panels
from ttsnn.passes.cpu.kernels.register_tile import RegisterTile, chunks, pick
from ttsnn.passes.cpu.kernels.tiles import register_rows
from ttsnn.passes.cpu.kernels.tir import Body, at_most, i64, load, splat, vector
from ttsnn.passes.cpu.layer_config import Stage

__all__ = ["weight_grad"]

STRIP_PIXELS = 256
"""Output pixels of a strip: long enough to pay for loading and storing a register tile."""

FINAL_UNIT = 4096
"""Elements of the result that a unit of the final sum adds up."""


def weight_grad(
    stage: Stage, images: int, dtype: str, isa: Isa, units: int, rows: int | None = None
) -> PrimFunc:
    """The function (x [1, images, H, W, Cin], dy [1, images, Ho, Wo, Cout], dw [taps, rows, Cout]).

    Args:
        stage: the forward convolution.
        images: number of images, all timesteps together.
        dtype: ``"float32"`` or ``"float64"``.
        isa: vector width and registers.
        units: how many units of parallel work; a multiple of the threads is best.
        rows: only the first so many input channels; None for all.
    """
    return _WeightGrad(stage, images, dtype, isa, units, rows).function()


class _WeightGrad:
    def __init__(
        self, stage: Stage, images: int, dtype: str, isa: Isa, units: int, rows: int | None
    ) -> None:
        self.full, self.images, self.dtype = stage, images, dtype
        self.stage = stage = _flattened(stage)
        self.lanes = isa.lanes(dtype)
        self.body = Body()
        (self.height, self.width), (self.ho, self.wo) = stage.in_size, stage.out_size
        self.cin, self.cout = rows or stage.in_channels, stage.out_channels
        self.pixel = stage.in_channels
        self.size = len(stage.taps) * self.cin * self.cout
        found = panels(self.cout, self.lanes, panel_vectors(isa))
        self.panels = [(a, min(n, self.cout - a)) for a, n in found]
        widest = max(len(chunks(n, self.lanes)) for _, n in self.panels)
        self.rows = _tile_rows(self.cin, register_rows(isa, widest))
        pixels = self.ho * self.wo
        self.strip = max(1, min(self.ho, STRIP_PIXELS // self.wo))
        self.image_block = max(1, STRIP_PIXELS // pixels) if self.strip == self.ho else 1
        self.row_units, self.col_units = self._split(units)

    def _split(self, units: int) -> tuple[int, int]:
        """Units over images, and over input channels."""
        read = self.images * self.ho * self.wo * (self.cin + self.cout)
        if self.images > 1 and self.size * units <= read:
            return min(units, self.images), 1
        return 1, min(units, -(-self.cin // self.rows))

    def function(self) -> PrimFunc:
        b, full = self.body, self.full
        shapes = (
            (1, self.images, *full.in_size, self.pixel),
            (1, self.images, *full.out_size, self.cout),
            (len(full.taps), self.cin, self.cout),
        )
        params = [
            tirx.decl_buffer([i64(s) for s in shape], self.dtype, name)
            for name, shape in zip(("x", "dy", "dw"), shapes)
        ]
        self.x, self.dy, self.dw = (
            b.view(p, _size(p), self.dtype, f"{p.name}_flat") for p in params
        )
        self.out = self.dw
        if self.row_units > 1:
            self.out = b.alloc(self.row_units * self.size, self.dtype, "partial")
        with b.loop(self.row_units * self.col_units, "unit", "parallel") as unit:
            self._unit(unit)
        if self.row_units > 1:
            self._final_sum()
        macs = self.images * stage_macs(replace(self.full, in_channels=self.cin))
        return finished(b, params, "weight_grad", macs)

    def _unit(self, unit: Expr) -> None:
        b = self.body
        row, col = unit // self.col_units, unit % self.col_units
        low = b.bind(row * self.images // self.row_units, "image_low")
        high = b.bind((row + 1) * self.images // self.row_units, "image_high")
        tiles = self.cin // self.rows
        tile_low = b.bind(col * tiles // self.col_units, "tile_low")
        tile_high = b.bind((col + 1) * tiles // self.col_units, "tile_high")
        is_last = col == self.col_units - 1
        base = b.bind(row * self.size, "base")
        first = tile_low * self.rows
        channels = (tile_high - tile_low) * self.rows
        rest = self.cin - tiles * self.rows
        if rest:
            channels = channels + tirx.Select(is_last, i64(rest), i64(0))
        self._zero(base, b.bind(first, "first"), b.bind(channels, "channels"))
        blocks = (high - low + (self.image_block - 1)) // self.image_block
        with b.loop(blocks, "block") as block, b.loop(-(-self.ho // self.strip), "strip") as s:
            n0 = b.bind(low + block * self.image_block, "n0")
            n1 = b.bind(at_most(n0 + self.image_block, high), "n1")
            h0 = b.bind(s * self.strip, "h0")
            with b.loop(len(self.stage.taps), "tap") as tap:
                area = self._area(tap, n0, n1, h0)
                at = b.bind(base + tap * (self.cin * self.cout), "tap_at")
                with b.loop(tile_high - tile_low, "tile") as tile:
                    ci = b.bind((tile_low + tile) * self.rows, "ci")
                    self._tiles(ci, self.rows, area, at)
                if rest:
                    with b.when(is_last):
                        self._tiles(i64(tiles * self.rows), rest, area, at)

    def _zero(self, base: Expr, first: Expr, channels: Expr) -> None:
        b = self.body
        with (
            b.loop(len(self.stage.taps), "tap") as tap,
            b.loop(channels, "ci") as ci,
        ):
            at = b.bind(base + (tap * self.cin + first + ci) * self.cout, "at")
            whole = self.cout // self.lanes
            if whole:
                with b.loop(whole, "i") as i:
                    zero = splat(0.0, self.dtype, self.lanes)
                    b.store(self.out, zero, vector(at + i * self.lanes, self.lanes))
            for c, n in chunks(self.cout - whole * self.lanes, self.lanes):
                zero = splat(0.0, self.dtype, n)
                b.store(self.out, zero, vector(at + whole * self.lanes + c, n))

    def _area(self, tap: Expr, n0: Expr, n1: Expr, h0: Expr) -> _Area:
        """Images, rows and columns of a strip that a tap sees inside the image."""
        b, stage = self.body, self.stage
        spans = [
            [_inside(t[a], stage.strides[a], stage.in_size[a], stage.out_size[a]) for a in (0, 1)]
            for t in stage.taps
        ]
        top, left = (pick(tap, [s[a][0] for s in spans]) for a in (0, 1))
        bottom, right = (pick(tap, [s[a][1] for s in spans]) for a in (0, 1))
        y0 = b.bind(tirx.max(i64(top), h0), "y0")
        y1 = b.bind(at_most(i64(bottom), h0 + self.strip), "y1")
        x0 = b.bind(i64(left), "x0")
        columns = b.bind(right - left, "columns")
        dh = b.bind(pick(tap, [t[0] for t in stage.taps]), "dh")
        dw = b.bind(pick(tap, [t[1] for t in stage.taps]), "dw")
        return n0, n1, y0, y1, x0, columns, dh, dw

    def _tiles(self, ci: Expr, rows: int, area: _Area, at: Expr) -> None:
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
                self._tile(ci, rows, co, width, area, at)

    def _tile(self, ci: Expr, rows: int, co: Expr, width: int, area: _Area, at: Expr) -> None:
        b, (sh, sw) = self.body, self.stage.strides
        n0, n1, y0, y1, x0, columns, dh, dw = area
        acc = RegisterTile(b, self.dtype, (1, 1, rows), chunks(width, self.lanes))
        acc.start()
        with b.loop(n1 - n0, "n") as n, b.loop(y1 - y0, "y") as y:
            image, row = n0 + n, y0 + y
            pixel = ((image * self.height + row * sh + dh) * self.width) + x0 * sw + dw
            x_at = b.bind(pixel * self.pixel + ci, "x_at")
            pixel = (image * self.ho + row) * self.wo + x0
            dy_at = b.bind(pixel * self.cout + co, "dy_at")
            with b.loop(columns, "x") as x:
                here = dy_at + x * self.cout
                loaded = [b.bind(load(self.dy, vector(here + c, n_)), "g") for c, n_ in acc.vectors]
                with acc.pixels() as p:
                    a = b.bind(load(self.x, x_at + x * (sw * self.pixel) + p[2]), "a")
                    for (c, n_), g in zip(acc.vectors, loaded):
                        acc.set(acc.get(p, c, n_) + splat(a, self.dtype, n_) * g, p, c, n_)
        with acc.pixels() as p:
            out = b.bind(at + (ci + p[2]) * self.cout + co, "out")
            for c, n_ in acc.vectors:
                where = vector(out + c, n_)
                b.store(self.out, load(self.out, where) + acc.get(p, c, n_), where)

    def _final_sum(self) -> None:
        b = self.body
        with b.loop(-(-self.size // FINAL_UNIT), "part", "parallel") as part:
            start = b.bind(part * FINAL_UNIT, "start")
            count = b.bind(at_most(self.size - start, FINAL_UNIT), "count")

            def add(at: Expr, lanes: int) -> None:
                total = load(self.out, vector(at, lanes))
                for u in range(1, self.row_units):
                    total = total + load(self.out, vector(at + u * self.size, lanes))
                b.store(self.dw, total, vector(at, lanes))

            with b.loop(count // self.lanes, "i") as i:
                add(start + i * self.lanes, self.lanes)
            with b.loop(count % self.lanes, "i") as i:
                add(start + count // self.lanes * self.lanes + i, 1)


_Area = tuple[Expr, ...]


def _size(buffer: Var) -> int:
    out = 1
    for s in buffer.shape:
        out *= int(s)
    return out


def _flattened(stage: Stage) -> Stage:
    """A convolution of single pixels has no rows: small images become one row."""
    pixels = stage.in_size[0] * stage.in_size[1]
    if stage.taps != ((0, 0),) or stage.strides != (1, 1) or pixels > STRIP_PIXELS:
        return stage
    return replace(stage, in_size=(1, pixels), out_size=(1, pixels))


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
