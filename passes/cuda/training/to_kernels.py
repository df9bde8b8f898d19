"""ToCudaTrainingKernels: the operators of a training step as channels-last GPU kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, cast

import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from ttsnn.ops import lif_attrs_of, make_call, tt_conv_attrs_of
from ttsnn.passes.cpu.training.images import Image
from ttsnn.passes.cpu.training.to_kernels import Lowering, rewrite_functions
from ttsnn.passes.cuda.gpu import Gpu, gpu_of
from ttsnn.passes.cuda.kernels.channel_sums import batch_norm_stats, batch_norm_sums
from ttsnn.passes.cuda.kernels.conv import conv_kernel
from ttsnn.passes.cuda.kernels.conv_spec import ConvSpec, Segment
from ttsnn.passes.cuda.kernels.conv_tile import default_tile
from ttsnn.passes.cuda.kernels.weight_grad import weight_grad
from ttsnn.passes.cuda.training.weights import Link, dense_link, tt_links
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.static_values import op_name

__all__ = ["ToCudaTrainingKernels"]


@tvm.transform.module_pass(opt_level=0, name="ToCudaTrainingKernels")
class ToCudaTrainingKernels(ModulePass):
    """Compute images as [1, T · N, H, W, C].

    Convolutions (dense with one group, tensor-train), their gradients, and the sums of batch
    norms over pixels become calls of kernels; a tensor-train layer runs as its chain, the cross
    of both branches being one link. Neurons and everything elementwise stay operators, on the
    same layout. What is no image runs in the program's own layout.

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


class _Kernels:
    """Emits calls into one block builder; kernels of equal shape are made once."""

    def __init__(self, bb: relax.BlockBuilder, gpu: Gpu, precision: str) -> None:
        self.bb, self.gpu, self.precision = bb, gpu, precision
        self._made: dict[tuple, tvm.ir.GlobalVar] = {}

    def call(
        self,
        key: tuple,
        make: Callable[[], PrimFunc],
        args: Sequence[relax.Expr],
        shapes: Sequence[Sequence[int]],
        dtype: str,
    ) -> list[relax.Var]:
        """Call the kernel that ``make`` makes, unless one of that key is there; its results."""
        if key not in self._made:
            self._made[key] = self.bb.add_func(make(), str(key[0]))
        types = [relax.TensorType([int(s) for s in shape], dtype) for shape in shapes]
        out = relax.call_tir(self._made[key], list(args), types if len(types) > 1 else types[0])
        out = self.bb.emit(out)
        if len(types) == 1:
            return [out]
        return [self.bb.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]

    def conv(
        self, stage: Stage, x: relax.Var, w: relax.Var, apart: tuple[int, int] = (1, 1)
    ) -> relax.Var:
        """A convolution of an image; ``apart`` as in :class:`Segment`."""
        dtype, images = _dtype(x), known_dims(x)[1]
        part = Segment(stage, 0, 1, 1, 0, dtype, apart)
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

    def input_grad(self, stage: Stage, dy: relax.Var, w: relax.Var) -> relax.Var:
        """Gradient to a convolution's input: of dy, its pixels a stride apart, mirrored."""
        back = Stage(
            tuple((-a, -b) for a, b in stage.taps),
            stage.out_size,
            stage.in_size,
            stage.out_channels,
            stage.in_channels,
        )
        turned = self.bb.emit(relax.op.permute_dims(w, [0, 2, 1]))
        return self.conv(back, dy, turned, stage.strides)

    def weight_grad(self, stage: Stage, x: relax.Var, dy: relax.Var) -> relax.Var:
        """Gradient [taps, Cin, Cout] of a convolution's weight."""
        dtype, images = _dtype(x), known_dims(x)[1]
        return self.call(
            ("weight_grad", stage, images, dtype),
            lambda: weight_grad(stage, images, dtype, self.gpu),
            [x, dy],
            [(len(stage.taps), stage.in_channels, stage.out_channels)],
            dtype,
        )[0]

    def batch_norm_stats(
        self,
        x: relax.Var,
        running: Sequence[relax.Expr],
        epsilon: float,
        momentum: float,
        repeats: int,
    ) -> list[relax.Var]:
        """(new running mean, new running variance, mean, 1/σ)."""
        shape, dtype = tuple(known_dims(x)), _dtype(x)
        return self.call(
            ("batch_norm_stats", shape, dtype, epsilon, momentum, repeats),
            lambda: batch_norm_stats(shape, dtype, self.gpu, epsilon, momentum, repeats),
            [x, *running],
            [shape[-1:]] * 4,
            dtype,
        )

    def batch_norm_sums(
        self, x: relax.Var, mean: relax.Expr, rstd: relax.Expr, dy: relax.Var
    ) -> list[relax.Var]:
        """(dgamma, dbeta)."""
        shape, dtype = tuple(known_dims(x)), _dtype(x)
        return self.call(
            ("batch_norm_sums", shape, dtype),
            lambda: batch_norm_sums(shape, dtype, self.gpu),
            [x, mean, rstd, dy],
            [shape[-1:]] * 2,
            dtype,
        )


class _CudaLowering(Lowering):
    """Handlers of the operators that differ from the CPU's."""

    def __init__(self, bb: relax.BlockBuilder, kernels: _Kernels, func: relax.Function) -> None:
        super().__init__(bb, cast(Any, kernels), func)  # the CPU's are not called
        self.gpu_kernels = kernels
        # values and weights of chains, for the backward of the same function
        self.computed: dict[tuple, tuple[list[relax.Var], list[relax.Var]]] = {}

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
        x = self.known_image(call.args[0])
        geometry = ([int(v) for v in values] for values in (a.strides, a.padding, a.dilation))
        link = dense_link(known_dims(call.args[1]), x.sizes[1:3], *geometry)
        weight = link.weight([self.get(call.args[1])], self.bind)
        return replace(x, expr=self.gpu_kernels.conv(link.stage, x.expr, weight))

    def _conv_data(self, _var: relax.Var, call: relax.Call) -> Image | None:
        w, dy = call.args
        if int(call.attrs["groups"]) != 1:
            return None
        height, width = (int(s) for s in call.attrs["size"])
        link = self._link(known_dims(w), (height, width), call)
        image = self.known_image(dy)
        weight = link.weight([self.get(w)], self.bind)
        return replace(image, expr=self.gpu_kernels.input_grad(link.stage, image.expr, weight))

    def _conv_weight(self, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
        if int(call.attrs["groups"]) != 1:
            return None
        x, dy = (self.known_image(a) for a in call.args)
        link = self._link(known_dims(call), x.sizes[1:3], call)
        return link.gradients(self.gpu_kernels.weight_grad(link.stage, x.expr, dy.expr), self.bind)[
            0
        ]

    def _link(self, shape: Sequence[int], size: tuple[int, int], call: relax.Call) -> Link:
        geometry = ([int(v) for v in call.attrs[n]] for n in ("strides", "padding", "dilation"))
        return dense_link(tuple(shape), size, *geometry)

    def _parts(self, call: relax.Call) -> list[tuple[int, int, list[Link]]]:
        """Ranges of images and the chain that they run."""
        attrs = tt_conv_attrs_of(call)
        shape = known_dims(call.args[0])
        size, images = tuple(shape[-2:]), prod(shape[:-3])
        shapes = [tuple(known_dims(g)) for g in call.args[1:5]]
        if attrs.mode != "htt":
            return [(0, images, tt_links(attrs.mode, attrs, shapes, size))]
        full = shape[0] if attrs.timesteps < 0 else attrs.timesteps
        cut = full * (images // shape[0])
        parts = [(0, cut, "ptt"), (cut, images, "half")]
        return [(a, b, tt_links(kind, attrs, shapes, size)) for a, b, kind in parts if a < b]

    def _chain(
        self, call: relax.Call, part: int, links: list[Link], x: relax.Var
    ) -> tuple[list[relax.Var], list[relax.Var]]:
        """What each link of a chain reads, the chain's result after that; and their weights.

        Kept for whoever asks again with the same operands.
        """
        key = (*call.args[:5], part, str(call.attrs["strides"]))
        if key not in self.computed:
            cores = [self.get(g) for g in call.args[1:5]]
            weights = [link.weight(cores, self.bind) for link in links]
            values = [x]
            for link, weight in zip(links, weights):
                values.append(self.gpu_kernels.conv(link.stage, values[-1], weight))
            self.computed[key] = values, weights
        return self.computed[key]

    def _tt_conv(self, _var: relax.Var, call: relax.Call) -> Image:
        x = self.known_image(call.args[0])
        parts = [
            self._chain(call, i, links, self._part(x, begin, end))[0][-1]
            for i, (begin, end, links) in enumerate(self._parts(call))
        ]
        return self._joined(parts, x)

    def _tt_backward(self, var: relax.Var, call: relax.Call) -> list:
        x, dy = self.known_image(call.args[0]), self.known_image(call.args[5])
        to_x = (var, 0) in self.item_reads
        grads: list[relax.Expr | None] = [None] * 4
        parts = []
        for i, (begin, end, links) in enumerate(self._parts(call)):
            values, weights = self._chain(call, i, links, self._part(x, begin, end))
            g = self._part(dy, begin, end)
            for j in range(len(links) - 1, -1, -1):
                link = links[j]
                dw = self.gpu_kernels.weight_grad(link.stage, values[j], g)
                for source, new in zip(link.sources, link.gradients(dw, self.bind)):
                    old = grads[source]
                    grads[source] = new if old is None else self.bind(relax.op.add(old, new))
                if j > 0 or to_x:
                    g = self.gpu_kernels.input_grad(link.stage, g, weights[j])
            parts.append(g)
        for i, core in enumerate(call.args[1:5]):
            if grads[i] is None:
                grads[i] = self.bind(relax.op.zeros(core.ty.shape, str(core.ty.dtype)))
        return [self._joined(parts, x) if to_x else None, *grads]

    # -- normalisation -----------------------------------------------------------------------

    def _normed(self, call: relax.Call) -> Image | None:
        """The operand of a batch norm over the channels of an image."""
        rank = len(known_dims(call.args[0]))
        if rank < 4 or int(call.attrs["axis"]) != rank - 3:
            return None
        return self.image(call.args[0])

    def _batch_norm(self, _var: relax.Var, call: relax.Call) -> list | None:
        x = self._normed(call)
        if x is None:
            return None
        gamma, beta, *running = (self.get(a) for a in call.args[1:])
        epsilon, momentum = float(call.attrs["epsilon"]), float(call.attrs["momentum"])
        repeats = int(call.attrs.get("repeats", 1))
        stats = self.gpu_kernels.batch_norm_stats(x.expr, running, epsilon, momentum, repeats)
        mean, rstd = stats[2:]
        y = self.bind(relax.op.multiply(self.bind(relax.op.subtract(x.expr, mean)), rstd))
        y = self.bind(relax.op.add(self.bind(relax.op.multiply(y, gamma)), beta))
        return [replace(x, expr=y), *stats]

    def _batch_norm_backward(self, _var: relax.Var, call: relax.Call) -> list | None:
        x = self._normed(call)
        if x is None:
            return None
        dy = self.known_image(call.args[4]).expr
        gamma, mean, rstd = (self.get(a) for a in call.args[1:4])
        sums = self.gpu_kernels.batch_norm_sums(x.expr, mean, rstd, dy)
        per = relax.const(1.0 / prod(known_dims(x.expr)[:-1]), _dtype(x.expr))
        to_gamma, to_beta = (self.bind(relax.op.multiply(s, per)) for s in sums)
        hat = self.bind(relax.op.subtract(x.expr, mean))
        hat = self.bind(relax.op.multiply(hat, rstd))
        inner = self.bind(relax.op.subtract(dy, to_beta))
        inner = self.bind(relax.op.subtract(inner, self.bind(relax.op.multiply(hat, to_gamma))))
        scale = self.bind(relax.op.multiply(gamma, rstd))
        return [replace(x, expr=self.bind(relax.op.multiply(inner, scale))), *sums]

    # -- neurons -----------------------------------------------------------------------------

    def _steps(self, image: Image, shape: Sequence[int]) -> relax.Var:
        """[T, N, H, W, C]."""
        return self.reshape(image.expr, (*shape[:2], *image.sizes[1:]))

    def _operands(self, call: relax.Call) -> tuple[Image, list[relax.Expr]] | None:
        """A neuron's input, and its first operands channels last."""
        attrs, x = lif_attrs_of(call), call.args[0]
        shape = known_dims(x)
        if attrs.decay_operand or attrs.threshold_operand or len(shape) != 5:
            return None
        if not self.is_image(x):
            return None
        image = replace(self.known_image(x), lead=tuple(shape[:2]))
        return image, [self._steps(image, shape), self._state(call.args[1], image)]

    def _state(self, expr: relax.Expr, like: Image) -> relax.Expr:
        """A membrane or its gradient [N, H, W, C]."""
        sizes = (like.lead[1], *like.sizes[1:])
        if self.is_zero(expr):
            return self.bind(relax.op.zeros(relax.ShapeExpr(sizes), _dtype(like.expr)))
        return self.reshape(self.known_image(expr).expr, sizes)

    def _image_of(self, value: relax.Var, lead: tuple[int, ...]) -> Image:
        return Image(self.reshape(value, (1, prod(lead), *known_dims(value)[-3:])), lead)

    def _lif(self, _var: relax.Var, call: relax.Call) -> list | None:
        made = self._operands(call)
        if made is None:
            return None
        x, args = made
        out = self.bind(make_call(call.op.name, args, lif_attrs_of(call).to_dict()))
        spikes, last = (self.bind(relax.TupleGetItem(out, i)) for i in range(2))
        return [self._image_of(spikes, x.lead), self._image_of(last, x.lead[1:])]

    def _lif_backward(self, _var: relax.Var, call: relax.Call) -> list | None:
        made = self._operands(call)
        if made is None:
            return None
        x, args = made
        shape = known_dims(call.args[0])
        args.append(self._steps(self.known_image(call.args[2]), shape))
        args.append(self._state(call.args[3], x))
        out = self.bind(make_call(call.op.name, args, lif_attrs_of(call).to_dict()))
        dx, dv0 = (self.bind(relax.TupleGetItem(out, i)) for i in range(2))
        return [self._image_of(dx, x.lead), self._image_of(dv0, x.lead[1:])]


def _dtype(x: relax.Expr) -> str:
    return str(x.ty.dtype)


_HANDLERS = {
    "relax.nn.conv2d": _CudaLowering._conv,
    "relax.dense.conv2d_backward_data": _CudaLowering._conv_data,
    "relax.dense.conv2d_backward_weight": _CudaLowering._conv_weight,
    "relax.tt.conv2d": _CudaLowering._tt_conv,
    "relax.tt.conv2d_backward": _CudaLowering._tt_backward,
    "relax.snn.batch_norm_train": _CudaLowering._batch_norm,
    "relax.snn.batch_norm_train_backward": _CudaLowering._batch_norm_backward,
    "relax.snn.lif": _CudaLowering._lif,
    "relax.snn.lif_backward": _CudaLowering._lif_backward,
}
