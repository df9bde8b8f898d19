"""ToCudaTrainingKernels: the operators of a training step as channels-last GPU kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import tvm
from tvm import relax

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
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training_kernels.arrays import Shape
from ttsnn.passes.training_kernels.calls import StreamKernels
from ttsnn.passes.training_kernels.images import Image
from ttsnn.passes.training_kernels.link import Link, dense_link
from ttsnn.passes.training_kernels.lowering import Lowering, rewrite_functions

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
        precision: of the products of convolutions and of gradients to their inputs, see
            ``LayersToKernels``; gradients to weights are not rounded.
    """

    def __init__(self, target: tvm.target.Target, precision: str = "fp32") -> None:
        self.target = target
        self.precision = precision

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        bb = relax.BlockBuilder()
        kernels = _Kernels(bb, gpu_of(self.target), self.precision)
        return rewrite_functions(mod, bb, lambda func: _CudaLowering(bb, kernels, func))


class _Kernels(StreamKernels):
    """Emits calls into one block builder; kernels of equal shape are made once."""

    def __init__(self, bb: relax.BlockBuilder, gpu: Gpu, precision: str) -> None:
        super().__init__(bb)
        self.gpu, self.precision = gpu, precision

    def arrays(self, shape: Shape, dtype: str, steps: int = 1) -> CudaArrays:
        """See :class:`StreamKernels`."""
        return CudaArrays(shape, dtype, self.gpu, steps)

    def rank_multiple(self, dtype: str) -> int:
        """What ranks are rounded up to: whole vectors."""
        return self.gpu.vector(dtype)

    def conv(self, link: Link, x: relax.Var, cores: Sequence[relax.Expr]) -> relax.Var:
        """A convolution of an image, which may be spikes as bytes."""
        stage, dtype = _stored(link), _dtype(cores[0])
        return self._conv(stage, x, self._weight(link, cores, stage, dtype, False), dtype)

    def input_grad(self, link: Link, dy: relax.Var, cores: Sequence[relax.Expr]) -> relax.Var:
        """Gradient to a convolution's input: of dy, its pixels a stride apart, mirrored."""
        stage, dtype = _stored(link), _dtype(dy)
        back = Stage(
            tuple((-a, -b) for a, b in stage.taps),
            stage.out_size,
            stage.in_size,
            stage.out_channels,
            stage.in_channels,
        )
        turned = self._weight(link, cores, back, dtype, True)
        return self._conv(back, dy, turned, dtype, stage.strides)

    def weight_grads(self, link: Link, x: relax.Var, dy: relax.Var) -> list[relax.Var]:
        """Gradients of a convolution's parameters; x may be spikes as bytes."""
        stage, dtype, images = _stored(link), _dtype(dy), known_dims(x)[1]
        channels = (stage.in_channels, stage.out_channels)
        (dw,) = self.call(
            ("weight_grad", stage, images, dtype, _dtype(x)),
            lambda: weight_grad(stage, images, dtype, self.gpu, _dtype(x)),
            [x, dy],
            [(len(stage.taps), *channels)],
            dtype,
        )
        return self.call(
            ("core_grads", link.weight, channels, dtype),
            lambda: core_grads(link.weight, channels, dtype),
            [dw],
            link.weight.shapes,
            dtype,
        )

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
        part = Segment(stage, 0, 1, 1, 0, _dtype(x), apart)
        precision = self.precision if dtype == "float32" else "fp32"
        spec = ConvSpec(
            (part,), 1, False, 0, dtype, None, False, ("membrane",), dtype, dtype, precision
        )
        return self.call(
            ("conv", spec, images),
            lambda: conv_kernel(spec, images, default_tile(spec, images, self.gpu), self.gpu),
            [x, w],
            [(1, images, *stage.out_size, stage.out_channels)],
            dtype,
        )[0]


def _stored(link: Link) -> Stage:
    """A link's convolution with the channels that its input and result have in memory."""
    cin, cout = link.stored
    return replace(link.stage, in_channels=cin, out_channels=cout)


class _CudaLowering(Lowering):
    """Convolutions, and their gradients."""

    def convert(self, var: relax.Var, value: relax.Expr) -> Image | list | relax.Expr | bool | None:
        """By the operator's handler."""
        handler = _HANDLERS.get(op_name(value))
        return super().convert(var, value) if handler is None else handler(self, var, value)

    # -- convolutions ------------------------------------------------------------------------

    def _conv(self, _var: relax.Var, call: relax.Call) -> Image | None:
        a = call.attrs
        layouts = (str(a.data_layout), str(a.kernel_layout), str(a.out_layout))
        if int(a.groups) != 1 or layouts != ("NCHW", "OIHW", "NCHW"):
            return None
        x = self.known_image(call.args[0], compact=True)
        geometry = ([int(v) for v in values] for values in (a.strides, a.padding, a.dilation))
        link = dense_link(known_dims(call.args[1]), x.sizes[1:3], *geometry)
        return replace(x, expr=self.k.conv(link, x.expr, [self.get(call.args[1])]))

    def _conv_data(self, _var: relax.Var, call: relax.Call) -> Image | None:
        w, dy = call.args
        if int(call.attrs["groups"]) != 1:
            return None
        height, width = (int(s) for s in call.attrs["size"])
        link = self._link(known_dims(w), (height, width), call)
        image = self.known_image(dy)
        return replace(image, expr=self.k.input_grad(link, image.expr, [self.get(w)]))

    def _conv_weight(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        if int(call.attrs["groups"]) != 1:
            return None
        x, dy = self.known_image(call.args[0], compact=True), self.known_image(call.args[1])
        link = self._link(known_dims(call), x.sizes[1:3], call)
        return self.k.weight_grads(link, x.expr, dy.expr)[0]

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

    def _tt_conv(self, _var: relax.Var, call: relax.Call) -> Image:
        x = self.known_image(call.args[0], compact=True)
        parts = [
            self._chain(call, i, links, self._part(x, begin, end))[-1]
            for i, (begin, end, links) in enumerate(self._tt_parts(call))
        ]
        return self._joined(parts, x)

    def _tt_backward(self, var: relax.Var, call: relax.Call) -> list:
        x, dy = self.known_image(call.args[0], compact=True), self.known_image(call.args[5])
        cores = [self.get(g) for g in call.args[1:5]]
        to_x = (var, 0) in self.item_reads
        grads: list[relax.Expr | None] = [None] * 4
        parts = []
        for i, (begin, end, links) in enumerate(self._tt_parts(call)):
            values = self._chain(call, i, links, self._part(x, begin, end))
            g = self._part(dy, begin, end)
            for j in range(len(links) - 1, -1, -1):
                link = links[j]
                for source, new in zip(link.sources, self.k.weight_grads(link, values[j], g)):
                    old = grads[source]
                    grads[source] = new if old is None else self.bind(relax.op.add(old, new))
                if j > 0 or to_x:
                    g = self.k.input_grad(link, g, cores)
            parts.append(g)
        for i, core in enumerate(call.args[1:5]):
            if grads[i] is None:
                grads[i] = self.bind(relax.op.zeros(core.ty.shape, str(core.ty.dtype)))
        return [self._joined(parts, x) if to_x else None, *grads]


def _dtype(x: relax.Expr) -> str:
    return str(x.ty.dtype)


_HANDLERS = {
    "relax.nn.conv2d": _CudaLowering._conv,
    "relax.dense.conv2d_backward_data": _CudaLowering._conv_data,
    "relax.dense.conv2d_backward_weight": _CudaLowering._conv_weight,
    "relax.tt.conv2d": _CudaLowering._tt_conv,
    "relax.tt.conv2d_backward": _CudaLowering._tt_backward,
}
