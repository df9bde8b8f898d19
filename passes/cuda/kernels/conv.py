"""The convolution kernel: sums in registers, operands through shared memory, then the neuron.

A block computes a tile of pixels × output channels for several timesteps at once
(:class:`ConvTile`); the sum over taps and input channels runs in steps of ``depth`` channels of
one tap. Sums and membranes stay in registers until bias, residual and neuron are done with them,
so a layer's membrane never reaches memory unless it is a result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, prod

from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.cuda.gpu import Gpu
from ttsnn.passes.cuda.kernels.body import CudaBody
from ttsnn.passes.cuda.kernels.conv_input import InputTile
from ttsnn.passes.cuda.kernels.conv_load import width_of
from ttsnn.passes.cuda.kernels.conv_output import Output
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, Phase, Segment, conv_params, phases
from ttsnn.passes.cuda.kernels.conv_split import Split
from ttsnn.passes.cuda.kernels.conv_sums import Fma, Mma
from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.cuda.kernels.conv_weight import WeightTile
from ttsnn.passes.cuda.kernels.mma import PACK
from ttsnn.passes.tir.body import splat
from ttsnn.passes.tir.finished import finished

__all__ = ["conv_kernel"]


def conv_kernel(spec: ConvSpec, batch: int | None, tile: ConvTile, gpu: Gpu) -> PrimFunc:
    """The function (x0, w0[, x1, w1][, bias][, residual][, v0], results…).

    Args:
        spec: what to compute. Weights are [taps, Cin, Cout], images [T, N, H, W, C].
        batch: number of images, None for a symbolic one.
        tile: how.
        gpu: for which GPU.
    """
    tile = replace(tile, pack=PACK[spec.precision])
    p = conv_params(spec, batch)
    sizes = [prod(v.shape) for v in p.all]
    b = CudaBody(None if batch is None else max(int(s) for s in sizes))
    flat = {
        key: b.view(buffer, prod(buffer.shape), str(buffer.dtype), f"{key}_flat")
        for key, buffer in {**p.operands, **p.results}.items()
    }
    b.check_narrow(p.all, p.batch)
    images = b.narrow(p.batch) * spec.T if spec.folded else b.narrow(p.batch)
    lanes = gpu.vector(spec.dtype)
    across = ceil(spec.stage.out_channels / tile.channels)
    macs = 0
    for phase in phases(spec):
        pixels = images * prod(phase.spec.stage.out_size)
        with (
            b.bound((pixels + (tile.pixels - 1)) // tile.pixels, "blockIdx.x") as block,
            b.bound(across, "blockIdx.y") as column,
            b.bound(tile.threads, "threadIdx.x") as thread,
        ):
            where = partial(_where, phase, spec)
            _Kernel(b, phase, tile, flat, images, pixels, where, lanes, block, column, thread).run()
        macs += sum((1 if s.still else s.end - s.begin) * _macs(s) for s in phase.spec.segments)
    return finished(b, p.all, "conv", (batch or 1) * macs)


def _where(phase: Phase, whole: ConvSpec, pixel: Expr) -> Expr:
    """The pixel of the whole result that a phase's pixel is."""
    (height, width), (down, across) = phase.spec.stage.out_size, whole.segments[0].apart
    if (down, across) == (1, 1):
        return pixel
    image, rest = pixel // (height * width), pixel % (height * width)
    y = rest // width * down + phase.first[0]
    x = rest % width * across + phase.first[1]
    return (image * whole.stage.out_size[0] + y) * whole.stage.out_size[1] + x


def _macs(part: Segment) -> int:
    s = part.stage
    return len(s.taps) * s.in_channels * s.out_channels * prod(s.out_size)


@dataclass
class _Kernel:
    """State while one kernel is written."""

    b: CudaBody
    phase: Phase
    tile: ConvTile
    flat: dict[str, Var]
    images: Expr
    pixels: Expr
    where: Callable[[Expr], Expr]
    lanes: int
    block: Expr
    column: Expr
    thread: Expr

    def run(self) -> None:
        """All timesteps of the block."""
        b, tile = self.b, self.tile
        spec = self.spec = self.phase.spec
        mma = spec.precision != "fp32"
        self.split = Split(b, tile, self.thread, spec.dtype, self.lanes)
        self.first = b.bind(self.block * tile.pixels, "first_pixel")
        self.channel = b.bind(self.column * tile.channels, "first_channel")
        vec = width_of(spec.stage.out_channels, self.lanes)
        vec = min(vec, 2) if mma else vec
        place_args = (self.first, self.channel, spec.dtype, self.lanes, vec)
        self.place = (
            Mma(b, tile, self.split.own, *place_args, spec.precision)
            if mma
            else Fma(b, tile, self.split.own, *place_args)
        )
        self.sums = self.place.sums
        out = Output(b, spec, tile, self.flat, self.pixels, vec, self.sums, self.place, self.where)
        with self.split.first_group():
            out.start()
        for i, part in enumerate(spec.segments):
            self._segment(i, part, out)
        with self.split.first_group():
            out.finish()

    def _segment(self, index: int, part: Segment, out: Output) -> None:
        b, tile, split = self.b, self.tile, self.split
        common = split.own, self.lanes, self.spec.dtype, self.spec.precision
        x = InputTile(
            b, part, tile, split.x, self.first, *common, self.flat[f"x{index}"], self.images
        )
        taps = self.phase.taps[index]
        w = WeightTile(b, part, tile, split.w, self.channel, *common, self.flat[f"w{index}"], taps)
        if self.spec.folded:
            x.locate(0, self.images // self.spec.T * part.x_begin)
            self._sum(part, x, w)
            with split.first_group():
                out.step(b.at(0), b.at(0))
        elif part.still:
            x.locate(part.x_begin)
            self._sum(part, x, w)
            with split.first_group(), b.loop(part.end - part.begin, "t") as t:
                out.step(t + part.begin, b.at(0))
        else:
            with b.loop((part.end - part.begin) // tile.time, "block_t") as blk:
                x.locate(blk * tile.time + part.x_begin)
                self._sum(part, x, w)
                with split.first_group(), b.loop(tile.time, "dt", "unrolled") as dt:
                    out.step(blk * tile.time + part.begin + dt, dt)

    def _sum(self, part: Segment, x: InputTile, w: WeightTile) -> None:
        """Sums over all taps and input channels."""
        b, tile, split = self.b, self.tile, self.split
        chunks = ceil(part.stage.in_channels / tile.depth)
        total = len(part.stage.taps) * chunks
        count, first = split.share(total)

        def fetch(step: Expr) -> None:
            with split.within(step, total):
                x.fetch()
                w.fetch(step // chunks, step % chunks)
            ahead = b.bind(step + 1, "ahead")
            x.aim(b.bind(ahead // chunks, "tap"), b.bind(ahead % chunks, "chunk"))

        with b.loop(tile.sums, "i", "unrolled") as i:
            b.store(self.sums, splat(0.0, self.spec.dtype, 1), i)
        if total == 0:
            return
        x.aim(first // chunks, first % chunks)
        fetch(first)
        with b.loop(count, "step") as step:
            x.put()
            w.put()
            if count > 1:
                with b.when(step + 1 < count):
                    fetch(first + step + 1)
            with split.within(first + step, total):
                self.place.multiply(split.x, split.w)
        split.add_up(self.sums)
