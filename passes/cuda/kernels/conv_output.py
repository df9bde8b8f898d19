"""What happens to the sums of a convolution: bias, residual, neuron, stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import IntImm, Var

from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec
from ttsnn.passes.cuda.kernels.conv_sums import Place
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.tir.body import load, splat, vector
from ttsnn.passes.tir.neuron import lif_step

__all__ = ["Output"]


@dataclass
class Output:
    """The epilogue of one thread.

    Attributes:
        flat: flat arguments by name.
        pixels: of one timestep.
        vec: elements of a store.
        sums: [time, rows, columns] in registers, arranged as ``place`` says.
        place: which pixels and channels of the block are the thread's.
        where: the pixel of the result that a pixel is.
    """

    b: CudaBody
    spec: ConvSpec
    tile: ConvTile
    flat: dict[str, Var]
    pixels: Expr
    vec: int
    sums: Var
    place: Place
    where: Callable[[Expr], Expr]

    def __post_init__(self) -> None:
        tile = self.tile
        self.channels = self.spec.stage.out_channels
        self.v = self.b.alloc(tile.rows * tile.columns, self.spec.dtype, "v", "local")
        self.out = {
            name: self.b.alloc(self.vec, str(self.flat[name].dtype), f"{name}_out", "local")
            for name in self.spec.emit
        }

    @contextmanager
    def places(self) -> Iterator[tuple[Expr, Expr, Expr, Expr]]:
        """Unrolled loops over the thread's vectors: (row, column, element of one timestep,
        channel).
        """
        b, tile = self.b, self.tile
        with b.loop(tile.rows, "r", "unrolled") as r:
            pixel = b.bind(self.place.pixel(r), "out_pixel")
            whole = isinstance(self.pixels, IntImm) and int(self.pixels) % tile.pixels == 0
            with nullcontext() if whole else b.when(pixel < self.pixels):
                line = b.bind(self.where(pixel) * self.channels, "out_line")
                with b.loop(tile.columns // self.vec, "j", "unrolled") as j:
                    c = b.bind(self.place.channel(j * self.vec), "c")
                    ragged = self.channels % tile.channels
                    with b.when(c < self.channels) if ragged else nullcontext():
                        yield r, j * self.vec, b.bind(line + c, "out_at"), c

    def start(self) -> None:
        """Membranes before the first timestep."""
        if self.spec.lif is None:
            return
        with self.b.loop(self.tile.rows * self.tile.columns, "i", "unrolled") as i:
            self.b.store(self.v, splat(0.0, self.spec.dtype, 1), i)
        if self.spec.v0:
            with self.places() as (r, j, at, _c):
                value = load(self.flat["v0"], vector(at, self.vec))
                self.b.store(self.v, value, vector(r * self.tile.columns + j, self.vec))

    def step(self, t: Expr, dt: Expr) -> None:
        """Finish timestep ``t``, whose sums are those of step ``dt`` of the tile."""
        b, spec = self.b, self.spec
        image = self.pixels * self.channels
        with self.places() as (r, j, at, c):
            out = b.bind(t * image + at, "at_t")
            sides = {}
            if spec.bias:
                sides["bias"] = vector(c, self.vec)
            if spec.residual_T:
                sides["residual"] = vector(at if spec.residual_T == 1 else out, self.vec)
            held = {}
            for name, where in sides.items():
                dtype = str(self.flat[name].dtype)
                held[name] = b.alloc(self.vec, dtype, f"{name}_held", "local")
                b.store(held[name], load(self.flat[name], where), vector(b.at(0), self.vec))
            with b.loop(self.vec, "e", "unrolled") as e:
                value = load(self.sums, self.place.sum(dt, r, j + e))
                for side in held.values():
                    value = value + load(side, e).astype(spec.dtype)
                self._element(b.bind(value, "m"), r * self.tile.columns + j + e, e)
            for name in ("membrane", "spikes"):
                if name in self.out:
                    b.store(
                        self.flat[name],
                        load(self.out[name], vector(b.at(0), self.vec)),
                        vector(out, self.vec),
                    )

    def _element(self, value: Expr, i: Expr, e: Expr) -> None:
        b, spec = self.b, self.spec
        if "membrane" in self.out:
            b.store(self.out["membrane"], value, e)
        if spec.lif is None:
            return
        before = b.bind(load(self.v, i), "v_before")
        spikes, after = lif_step(spec.lif, value, before, spec.dtype, 1)
        if "spikes" in self.out:
            if spec.spikes_dtype != spec.dtype:
                one, zero = (tirx.const(n, spec.spikes_dtype) for n in (1, 0))
                spikes = tirx.Select(spikes.condition, one, zero)
            b.store(self.out["spikes"], spikes, e)
        b.store(self.v, after, i)

    def finish(self) -> None:
        """Membranes after the last timestep."""
        if "v_last" not in self.out:
            return
        with self.places() as (r, j, at, _c):
            value = load(self.v, vector(r * self.tile.columns + j, self.vec))
            self.b.store(self.flat["v_last"], value, vector(at, self.vec))
