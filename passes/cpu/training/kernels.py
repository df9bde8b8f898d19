"""Calls of the training kernels: images [1, R, H, W, C] in, images out, equal kernels shared."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.kernels.arrays import CpuArrays
from ttsnn.passes.cpu.kernels.chain_backward import (
    BackwardLink,
    chain_backward,
    workspace_bytes,
)
from ttsnn.passes.cpu.kernels.interleave import interleave
from ttsnn.passes.cpu.kernels.pack import panel_vectors
from ttsnn.passes.cpu.kernels.tiles import default_tiles, whole_image_tiles
from ttsnn.passes.cpu.kernels.train_chain import kept_shapes, train_chain
from ttsnn.passes.cpu.kernels.weight_grad import weight_grad
from ttsnn.passes.cpu.kernels.weight_map import core_grads, packed_weight
from ttsnn.passes.cpu.rules.layer import threads_of
from ttsnn.passes.layers.config import LayerConfig, Stage
from ttsnn.passes.layers.panels import packed_channels
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.training_kernels.arrays import Shape
from ttsnn.passes.training_kernels.calls import TrainingKernels, dtype_of
from ttsnn.passes.training_kernels.images import BatchNormGrad
from ttsnn.passes.training_kernels.link import Link, input_phases
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["CpuKernels"]

UNITS_PER_THREAD = 2
"""Parts that a sum over pixels is split into, for each thread: a slow thread does less."""

IMAGE_PIXELS = 64
"""Fewest pixels of an image for which a chain's backward is worth doing image by image."""

IMAGE_BYTES = 1024 * 1024
"""Most that the gradients of such an image may take: the second-level cache."""


class CpuKernels(TrainingKernels):
    """Emits calls into one block builder; kernels of equal shape are made once.

    Args:
        bb: where calls and kernels go.
        target: the CPU.
    """

    def __init__(self, bb: relax.BlockBuilder, target: tvm.target.Target) -> None:
        super().__init__(bb)
        self.isa = isa_of(target)
        self.threads = threads_of(target)
        self.units = UNITS_PER_THREAD * self.threads

    def rank_multiple(self, dtype: str) -> int:
        """What ranks are rounded up to."""
        return max(1, self.isa.lanes(dtype) // 2)

    def arrays(self, shape: Shape, dtype: str, steps: int = 1) -> CpuArrays:
        """See :class:`TrainingKernels`."""
        return CpuArrays(shape, dtype, self.isa, self.units, steps)

    # -- convolutions ------------------------------------------------------------------------

    def conv(self, link: Link, x: relax.Var, sources: Sequence[relax.Expr]) -> relax.Var:
        """See :class:`TrainingKernels`."""
        return self.chain([link], x, sources)[0]

    def input_grad(self, link: Link, dy: relax.Var, sources: Sequence[relax.Expr]) -> relax.Var:
        """See :class:`TrainingKernels`."""
        return self.chain_input_grads([link], dy, sources)[0]

    def chain(
        self,
        links: Sequence[Link],
        x: relax.Var,
        sources: Sequence[relax.Expr],
        first: int = 0,
    ) -> list[Any]:
        """The results of all links of a chain, of an image (spikes may be bytes).

        Args:
            links: one after the other.
            x: what the first one reads.
            sources: parameters of the chain's call.
            first: the first result that is wanted; None for those before it.
        """
        stages = [link.forward for link in links]
        dtype = dtype_of(sources[0])
        weights = [
            self._weight(link, stage, sources, False, None, dtype)
            for link, stage in zip(links, stages)
        ]
        return [*[None] * first, *self._chain(stages, x, weights, dtype, first)]

    def goes_image_by_image(self, links: Sequence[Link], images: int, dtype: str) -> bool:
        """Whether a chain's backward is :meth:`chain_backward`.

        It is not where images are few, so small that a kernel for each link is faster, or too
        large for the cache; or where a link has strides.
        """
        stages = [link.stage for link in links]
        if images < self.units or any(s.strides != (1, 1) for s in stages):
            return False
        if len(links) > 1 and stages[0].taps != ((0, 0),):
            return False
        smallest = min(prod(stage.in_size) for stage in stages)
        config = self._config(self._backward_stages(links), dtype)
        return smallest >= IMAGE_PIXELS and workspace_bytes(config) <= IMAGE_BYTES

    def _backward_stages(self, links: Sequence[Link]) -> list[Stage]:
        """The gradient to the input of links of strides 1, the last link's first."""
        phases = [p for link in reversed(links) for p in input_phases(link)]
        return [p.stage for p in phases if p.stage is not None]

    def chain_input_grads(
        self, links: Sequence[Link], dy: relax.Var, sources: Sequence[relax.Expr]
    ) -> list[relax.Var]:
        """Gradients to the inputs of all links of a chain, the last link's first."""
        dtype, back = dtype_of(dy), list(reversed(links))
        if all(link.stage.strides == (1, 1) for link in links):
            stages = self._backward_stages(links)
            weights = [
                self._weight(link, stage, sources, True, None, dtype)
                for link, stage in zip(back, stages, strict=True)
            ]
            return self._chain(stages, dy, weights, dtype)
        grads = [dy]
        for link in back:
            grads.append(self._strided_input_grad(link, grads[-1], sources))
        return grads[1:]

    def _strided_input_grad(
        self, link: Link, dy: relax.Var, sources: Sequence[relax.Expr]
    ) -> relax.Var:
        dtype, parts = dtype_of(dy), {}
        for phase in input_phases(link):
            if phase.stage is not None:
                order = None if len(phase.order) == len(link.stage.taps) else phase.order
                weight = self._weight(link, phase.stage, sources, True, order, dtype)
                parts[phase.place] = self._chain([phase.stage], dy, [weight], dtype)[0]
        strides, present = link.stage.strides, tuple(parts)
        if strides == (1, 1):
            return parts[0, 0]
        shape = (1, known_dims(dy)[1], *link.stage.in_size, link.stored[0])
        return self.call(
            ("interleave", shape, strides, present, dtype),
            lambda: interleave(shape, strides, present, dtype, self.isa),
            list(parts.values()),
            [shape],
            dtype,
        )[0]

    def chain_backward(
        self,
        links: Sequence[Link],
        inputs: Sequence[relax.Var | None],
        dy: BatchNormGrad | relax.Var,
        sources: Sequence[relax.Expr],
    ) -> tuple[relax.Var, list[list[relax.Var]]]:
        """The gradient to a chain's input, and those of each link's parameters, image by image.

        Args:
            links: one after the other.
            inputs: what each of them reads; the second's may be None.
            dy: gradient of the chain's result, or of a batch norm's that reads it.
            sources: parameters of the chain's call.
        """
        images, dtype, back = known_dims(inputs[0])[1], dtype_of(sources[0]), list(reversed(links))
        stages = self._backward_stages(links)
        config = self._config(stages, dtype)
        kinds = tuple(
            BackwardLink(
                k.whole,
                k.stage.in_channels,
                dtype_of(x) if i == 0 else dtype,
            )
            for i, (k, x) in enumerate(zip(links, inputs))
        )
        normed = isinstance(dy, BatchNormGrad)
        weights = [
            self._weight(link, stage, sources, True, None, dtype)
            for link, stage in zip(back, stages, strict=True)
        ]
        if len(links) > 1:
            weights.append(self._weight(links[0], links[0].forward, sources, False, None, dtype))
        read = [x for i, x in enumerate(inputs) if i != 1]
        shapes: list[tuple[int, ...]]
        shapes = [(1, images, *links[0].stage.in_size, links[0].stored[0])]
        shapes += [(len(k.stage.taps), k.rows, k.stage.out_channels) for k in kinds]

        def make() -> PrimFunc:
            tiles = whole_image_tiles(config, self.isa)
            return chain_backward(kinds, config, images, self.isa, tiles, self.units, normed)

        dx, *dws = self.call(
            ("chain_backward", kinds, config, images, normed),
            make,
            [*([dy.x.expr, *dy.args] if normed else [dy]), *read, *weights],
            shapes,
            dtype,
        )
        return dx, [self.source_grads(k, dw) for k, dw in zip(links, dws)]

    def core_grads(self, map_: WeightMap, channels: tuple[int, int], dtype: str) -> PrimFunc:
        """See :class:`TrainingKernels`."""
        return core_grads(map_, channels, dtype)

    def product_sums(self, link: Link, x: relax.Var, dy: relax.Var) -> relax.Var:
        """Gradient of the link's weight [taps, Cin, Cout], Cout as the result is stored."""
        dtype, x_dtype, images = dtype_of(dy), dtype_of(x), known_dims(x)[1]
        stage = link.whole
        rows = link.stage.in_channels  # channels beyond a rank are zero
        return self.call(
            ("weight_grad", stage, images, dtype, rows, x_dtype),
            lambda: weight_grad(stage, images, dtype, self.isa, self.units, rows, x_dtype),
            [x, dy],
            [(len(stage.taps), rows, stage.out_channels)],
            dtype,
        )[0]

    def _packing(self, dtype: str) -> tuple[int, int]:
        return self.isa.lanes(dtype), panel_vectors(self.isa)

    def _weight(
        self,
        link: Link,
        stage: Stage,
        sources: Sequence[relax.Expr],
        transposed: bool,
        order: tuple[int, ...] | None,
        dtype: str,
    ) -> relax.Var:
        channels, packing = (stage.in_channels, stage.out_channels), self._packing(dtype)
        taps = len(link.weight.taps) if order is None else len(order)
        size = taps * channels[0] * packed_channels(channels[1], packing[0])
        return self.call(
            ("pack_weight", link.weight, channels, dtype, transposed, order),
            lambda: packed_weight(link.weight, channels, dtype, packing, transposed, order),
            [sources[i] for i in link.sources],
            [(size,)],
            dtype,
        )[0]

    def _chain(
        self,
        stages: Sequence[Stage],
        x: relax.Var,
        weights: Sequence[relax.Var],
        dtype: str,
        first: int = 0,
    ) -> list[relax.Var]:
        """Results of the stages from the ``first``-th on."""
        images, x_type = known_dims(x)[1], (dtype_of(x), known_dims(x)[-1])
        config = self._config(stages, dtype)

        def make() -> PrimFunc:
            tiles = default_tiles(config, images, self.isa, self.threads)
            return train_chain(config, images, self.isa, tiles, x_type, first)

        last = stages[-1]
        shapes = [
            (1, images, *last.out_size, last.out_channels),
            *kept_shapes(config, images, first),
        ]
        y, *kept = self.call(
            ("conv", config, images, x_type, first), make, [x, *weights], shapes, dtype
        )
        return [*kept, y]

    def _config(self, stages: Sequence[Stage], dtype: str) -> LayerConfig:
        """A chain of one timestep and nothing else."""
        return LayerConfig(
            name="",
            T=1,
            x_T=1,
            stages=tuple(stages),
            half_stages=(),
            timesteps=1,
            bias=False,
            residual=False,
            residual_T=1,
            lif=None,
            v0=False,
            emit=("membrane",),
            dtype=dtype,
            packing=self._packing(dtype),
        )
