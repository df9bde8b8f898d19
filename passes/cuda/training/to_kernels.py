"""ToCudaTrainingKernels: the operators of a training step as channels-last GPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from ttsnn.passes.cuda.gpu import Gpu, gpu_of
from ttsnn.passes.cuda.kernels.arrays import CudaArrays
from ttsnn.passes.cuda.kernels.conv import conv_kernel
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, Segment
from ttsnn.passes.cuda.kernels.conv_tile import default_tile
from ttsnn.passes.cuda.kernels.weight_grad import weight_grad
from ttsnn.passes.cuda.kernels.weight_map import core_grads, tap_weight
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.training_kernels.arrays import Shape
from ttsnn.passes.training_kernels.calls import TrainingKernels, dtype_of
from ttsnn.passes.training_kernels.convolutions import ConvLowering
from ttsnn.passes.training_kernels.images import Image
from ttsnn.passes.training_kernels.linear import LINEAR_HANDLERS
from ttsnn.passes.training_kernels.link import Link
from ttsnn.passes.training_kernels.lowering import rewrite_functions
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["ToCudaTrainingKernels"]


@tvm.transform.module_pass(opt_level=0, name="ToCudaTrainingKernels")
class ToCudaTrainingKernels(ModulePass):
    """Compute images as [1, T · N, H, W, C].

    Convolutions (dense with one group, tensor-train), batch norms, neurons and their gradients
    become calls of kernels; a tensor-train layer runs as its chain, the cross of both branches
    being one link, its ranks padded with zeros to whole vectors. A batch norm is computed by the
    neuron or the addition that reads it. Spikes that convolutions read are bytes. What is
    elementwise stays an operator, on the same layout; what is no image runs in the program's own.

    Args:
        target: the GPU.
        precision: of the products of convolutions and of their gradients, see ``LayersToKernels``.
    """

    def __init__(self, target: tvm.target.Target, precision: str = "fp32") -> None:
        self.target = target
        self.precision = precision

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        bb = relax.BlockBuilder()
        kernels = _Kernels(bb, gpu_of(self.target), self.precision)
        return rewrite_functions(mod, bb, lambda func: _CudaLowering(bb, kernels, func))


class _Kernels(TrainingKernels):
    """Emits calls into one block builder; kernels of equal shape are made once."""

    recomputes_neurons = True  # memory is what their kernels wait for

    def __init__(self, bb: relax.BlockBuilder, gpu: Gpu, precision: str) -> None:
        super().__init__(bb)
        self.gpu, self.precision = gpu, precision

    def arrays(self, shape: Shape, dtype: str, steps: int = 1) -> CudaArrays:
        """See :class:`TrainingKernels`."""
        return CudaArrays(shape, dtype, self.gpu, steps)

    def rank_multiple(self, dtype: str) -> int:
        """What ranks are rounded up to: whole vectors."""
        return self.gpu.vector(dtype)

    def conv(self, link: Link, x: relax.Var, cores: Sequence[relax.Expr]) -> relax.Var:
        """A convolution of an image, which may be spikes as bytes."""
        stage, dtype = link.whole, dtype_of(cores[0])
        return self._conv(stage, x, self._weight(link, cores, stage, dtype, False), dtype)

    def input_grad(self, link: Link, dy: relax.Var, cores: Sequence[relax.Expr]) -> relax.Var:
        """Gradient to a convolution's input: of dy, its pixels a stride apart, mirrored."""
        stage, dtype = link.whole, dtype_of(dy)
        back = Stage(
            tuple((-a, -b) for a, b in stage.taps),
            stage.out_size,
            stage.in_size,
            stage.out_channels,
            stage.in_channels,
        )
        turned = self._weight(link, cores, back, dtype, True)
        return self._conv(back, dy, turned, dtype, stage.strides)

    def product_sums(self, link: Link, x: relax.Var, dy: relax.Var) -> relax.Var:
        """See :class:`TrainingKernels`."""
        stage, dtype, images = link.whole, dtype_of(dy), known_dims(x)[1]
        precision = self._rounding(dtype)
        return self.call(
            ("weight_grad", stage, images, dtype, dtype_of(x), precision),
            lambda: weight_grad(stage, images, dtype, self.gpu, dtype_of(x), precision),
            [x, dy],
            [(len(stage.taps), stage.in_channels, stage.out_channels)],
            dtype,
        )[0]

    def core_grads(self, map_: WeightMap, channels: tuple[int, int], dtype: str) -> PrimFunc:
        """See :class:`TrainingKernels`."""
        return core_grads(map_, channels, dtype, self.gpu)

    def _rounding(self, dtype: str) -> str:
        """``precision`` of products, which is for float32 alone."""
        return self.precision if dtype == "float32" else "fp32"

    def _weight(
        self, link: Link, cores: Sequence[relax.Expr], stage: Stage, dtype: str, transposed: bool
    ) -> relax.Var:
        channels = (stage.in_channels, stage.out_channels)
        return self.call(
            ("tap_weight", link.weight, channels, dtype, transposed),
            lambda: tap_weight(link.weight, channels, dtype, transposed),
            [cores[i] for i in link.sources],
            [(len(stage.taps), *channels)],
            dtype,
        )[0]

    def _conv(
        self,
        stage: Stage,
        x: relax.Var,
        w: relax.Var,
        dtype: str,
        apart: tuple[int, int] = (1, 1),
    ) -> relax.Var:
        """``apart`` as in :class:`Segment`."""
        images = known_dims(x)[1]
        part = Segment(stage, 0, 1, 1, 0, dtype_of(x), apart)
        precision, emit = self._rounding(dtype), ("membrane",)
        spec = ConvSpec((part,), 1, False, 0, dtype, None, False, emit, dtype, dtype, precision)
        return self.call(
            ("conv", spec, images),
            lambda: conv_kernel(spec, images, default_tile(spec, images, self.gpu), self.gpu),
            [x, w],
            [(1, images, *stage.out_size, stage.out_channels)],
            dtype,
        )[0]


class _CudaLowering(ConvLowering):
    """Chains of a tensor-train layer by a kernel for each link, and products of matrices."""

    handlers: ClassVar = {**ConvLowering.handlers, **LINEAR_HANDLERS}

    def _chain(
        self, call: relax.Call, part: int, links: list[Link], x: relax.Var
    ) -> list[relax.Var]:
        """What each link of a chain reads, and the chain's result after that.

        Kept for whoever asks again with the same operands.
        """
        key = (*call.args[:5], part, str(call.attrs["strides"]))
        if key not in self.chains:
            cores, values = [self.get(g) for g in call.args[1:5]], [x]
            for link in links:
                values.append(self.k.conv(link, values[-1], cores))
            self.chains[key] = values
        return self.chains[key]

    def chain_result(
        self, call: relax.Call, part: int, links: list[Link], x: relax.Var
    ) -> relax.Var:
        """See :class:`ConvLowering`."""
        return self._chain(call, part, links, x)[-1]

    def chain_grads(
        self,
        call: relax.Call,
        part: tuple[int, int, int],
        links: list[Link],
        x: Image,
        to_x: bool,
    ) -> tuple[relax.Var, list[list[relax.Var]]]:
        """See :class:`ConvLowering`."""
        number, begin, end = part
        g = self._part(self.known_image(call.args[5]), begin, end)
        cores = [self.get(c) for c in call.args[1:5]]
        values = self._chain(call, number, links, self._part(x, begin, end))
        grads = []
        for j in range(len(links) - 1, -1, -1):
            grads.append(self.k.weight_grads(links[j], values[j], g))
            if j > 0 or to_x:
                g = self.k.input_grad(links[j], g, cores)
        return g, grads[::-1]
