"""The backward of a chain of tap convolutions, image by image.

For each image: the gradient of the chain's result, by way of the batch norm behind it; then for
each link, last first, the sums of its weight's gradient and the gradient to its input, while both
are in the cache. What the second link reads is not kept from the forward pass but computed again:
that costs little more than to store it and to read it.

Units of parallel work take some of the images, with partial sums of their own, which are added in
a fixed order: results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import PrimFunc, Var

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cpu.isa import Isa
from ttsnn.passes.cpu.kernels.arrays import CpuArrays
from ttsnn.passes.cpu.kernels.geometry import Region, chain_regions, leaves_image
from ttsnn.passes.cpu.kernels.grad_tiles import GradTiles, Strip, add_partial_sums
from ttsnn.passes.cpu.kernels.output import last_stage
from ttsnn.passes.cpu.kernels.stage import StageCall, inner_stage
from ttsnn.passes.cpu.kernels.stream import for_channels
from ttsnn.passes.cpu.kernels.tiles import LayerTiles, whole_image_tiles
from ttsnn.passes.cpu.kernels.unit import Unit
from ttsnn.passes.cpu.kernels.workspace import Array, workspaces
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_size
from ttsnn.passes.tir.body import i64, load, vector
from ttsnn.passes.tir.finished import finished
from ttsnn.passes.training_kernels.batch_norm import InputGrad

__all__ = ["BackwardLink", "chain_backward", "workspace_bytes"]


@dataclass(frozen=True)
class BackwardLink:
    """One link of the chain.

    Attributes:
        stage: the forward convolution; channels are those that its input and its result have in
            memory.
        rows: the first so many input channels have a weight.
        x_dtype: of its input; ``"uint8"`` for spikes stored as bytes.
    """

    stage: Stage
    rows: int
    x_dtype: str


def workspace_bytes(config: LayerConfig) -> int:
    """What an image's gradients take, from the chain's result to the first link's."""
    size = 8 if config.dtype == "float64" else 4
    regions = chain_regions(config.stages, config.stages[-1].out_size[0])
    return sum(
        r.rows * r.padded_width * s.in_channels * size for r, s in zip(regions, config.stages)
    )


def chain_backward(
    links: Sequence[BackwardLink],
    config: LayerConfig,
    images: int,
    isa: Isa,
    tiles: LayerTiles,
    units: int,
    normed: bool,
) -> PrimFunc:
    """The function of all gradients of a chain of strides 1.

    Its arguments are the gradient of the chain's result dy, or with ``normed`` the (x, gamma,
    mean, rstd, dy, dgamma, dbeta) of a batch norm of it; the inputs of the links, but for the
    second's; the packed weights of ``config``, and the first link's where there are several; then
    (dx, dw… [taps, rows, Cout]) of the links.

    Args:
        links: the forward chain; the first of several reads single pixels.
        config: the convolutions of the gradient to the input, last link first, of one timestep.
        images: number of images, all timesteps together.
        isa: vector width and registers.
        tiles: of ``config``, with images as work units.
        units: parts of the images that run in parallel.
        normed: whether a batch norm comes after the chain.
    """
    dtype, units = config.dtype, min(units, images)
    a = CpuArrays((1, images, *config.stages[0].in_size, links[-1].stage.out_channels), dtype, isa)
    b = a.b
    norm = InputGrad(a) if normed else None
    dy = norm.dy if norm is not None else a.image("dy")

    def argument(name: str, shape: Sequence[int], of: str = dtype) -> Var:
        buffer = tirx.decl_buffer([i64(s) for s in shape], of, name)
        a.params.append(buffer)
        return b.view(buffer, prod(shape), of, f"{name}_flat")

    stages = [link.stage for link in links]
    xs = {
        i: argument(f"x{i}", (1, images, *s.in_size, s.in_channels), link.x_dtype)
        for i, (s, link) in enumerate(zip(stages, links))
        if i != 1
    }
    flat = {
        f"w{i}": argument(f"w{i}", (packed_size(s, isa.lanes(dtype)),))
        for i, s in enumerate([*config.stages, *(stages[:1] if len(links) > 1 else [])])
    }
    flat["membrane"] = argument("dx", (1, images, *stages[0].in_size, stages[0].in_channels))
    flat["x"] = dy
    sums = [GradTiles(b, link.stage, link.rows, dtype, isa) for link in links]
    dws = [
        argument(f"dw{i}", (len(s.taps), t.cin, t.cout))
        for i, (s, t) in enumerate(zip(stages, sums))
    ]
    partial = [b.alloc(units * t.size, dtype, f"partial{i}") for i, t in enumerate(sums)]

    with b.loop(units, "unit", "parallel") as unit:
        low = b.bind(unit * images // units, "image_low")
        high = b.bind((unit + 1) * images // units, "image_high")
        bases = [b.bind(unit * t.size, "base") for t in sums]
        for t, out, base in zip(sums, partial, bases):
            t.zero(out, base, i64(0), i64(t.cin))
        with b.loop(high - low, "image") as i:
            u = Unit(b, config, isa, tiles, flat, i64(images), b.bind(low + i, "n"), i64(0))
            _image(u, links, xs, sums, list(zip(partial, bases)), norm)
    for t, out, dw in zip(sums, partial, dws):
        add_partial_sums(b, out, dw, units, t.size, t.lanes)
    macs = sum(map(stage_macs, config.stages))
    macs += sum(stage_macs(replace(k.stage, in_channels=k.rows)) for k in links)
    macs += stage_macs(stages[0]) if len(links) > 1 else 0
    return finished(b, a.params, "chain_backward", images * macs)


def _image(
    u: Unit,
    links: Sequence[BackwardLink],
    xs: Mapping[int, Var],
    sums: Sequence[GradTiles],
    outs: Sequence[tuple[Var, Expr]],
    norm: InputGrad | None,
) -> None:
    """All gradients of one image."""
    stages = u.config.stages
    regions = chain_regions(stages, u.tiles.strip_rows)
    works = workspaces(u, stages)
    first_x: Array | None = None
    works[0] = _result_grad(u, works[0], int(regions[0].start(0)), norm)
    for i, stage in enumerate(stages):
        link = len(stages) - 1 - i
        # rows of a workspace count from its region's first, which may lie above the image
        start = int(regions[i].start(0))
        dy = replace(works[i], base=works[i].base - start * works[i].row_stride)
        if link == 1:
            first_x, x = _first_link(u, links[0].stage, xs[0], len(stages))
        elif link == 0 and first_x is not None:
            x = first_x
        else:
            x = _input(u, links[link].stage, xs[link])
        tiles, (out, at) = sums[link], outs[link]
        with u.body.loop(tiles.strips, "strip") as s:
            strip = Strip(i64(0), i64(1), u.body.bind(s * tiles.strip_rows, "strip_h0"))
            tiles.add(out, at, x, dy, strip)
        call = StageCall(stage, u.tiles.stages[i], f"w{i}", works[i], regions[i + 1], False)
        if i == len(stages) - 1:
            last_stage(u, call, i64(0), 1, i64(0))
        else:
            inner_stage(u, call, works[i + 1])


def _input(u: Unit, stage: Stage, x: Var) -> Array:
    """What a link reads of one image."""
    size = prod(stage.in_size) * stage.in_channels
    base = u.body.bind(u.n * size, "x_at")
    return Array(x, base, size, stage.in_size[1], 0, stage.in_channels)


def _first_link(u: Unit, stage: Stage, x: Var, weight: int) -> tuple[Array, Array]:
    """The first link's input as numbers, and its result, of one image."""
    b, source = u.body, _input(u, stage, x)
    (height, width), dtype = stage.in_size, u.config.dtype
    if str(x.dtype) != dtype:
        size = height * width * stage.in_channels
        numbers = Array(b.alloc(size, dtype, "numbers"), i64(0), 0, width, 0, stage.in_channels)

        def number(at: Expr, n: int) -> None:
            value = load(x, vector(source.base + at, n))
            value = value.astype(dtype if n == 1 else f"{dtype}x{n}")
            b.store(numbers.buffer, value, vector(at, n))

        for_channels(b, size, u.lanes, number)
        source = numbers
    region = Region(height, width, 1, 0, height, 0, 0)
    result = b.alloc(height * width * stage.out_channels, dtype, "first")
    to = Array(result, i64(0), 0, width, 0, stage.out_channels)
    tile = whole_image_tiles(replace(u.config, stages=(stage,)), u.isa).stages[0]
    inner_stage(u, StageCall(stage, tile, f"w{weight}", source, region, False), to)
    return source, to


def _result_grad(u: Unit, work: Array, start: int, norm: InputGrad | None) -> Array:
    """The gradient of the chain's result for one image; ``start`` is the array's first row."""
    b, stage = u.body, u.config.stages[0]
    (height, width), channels = stage.in_size, stage.in_channels
    above = start * width * channels
    bordered = leaves_image(stage)
    image = b.bind(u.n * (height * width * channels), "dy_image")
    if norm is None and not bordered:
        return Array(u.flat["x"], b.bind(image + above, "dy_at"), 0, width, 0, channels)
    if not bordered:
        buffer = b.alloc(height * width * channels, u.config.dtype, "work0")
        work = Array(buffer, i64(above), 0, width, 0, channels)
    with b.loop(height, "row") as row, b.loop(width, "column") as column:
        source = b.bind(image + (row * width + column) * channels, "from")
        target = b.bind(work.at(0, row - start, column), "to")

        def element(c: Expr, n: int) -> None:
            at = source + c
            value = load(u.flat["x"], vector(at, n)) if norm is None else norm(at, c, n)
            b.store(work.buffer, value, vector(target + c, n))

        for_channels(b, channels, u.lanes, element)
    return work
