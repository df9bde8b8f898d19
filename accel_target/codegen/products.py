"""Convolutions, tensor-train too, matrix products, their gradients: part of the importer."""

from __future__ import annotations

from math import prod
from typing import Any

import tvm
from tvm import relax

from ttsnn.accel_target.codegen.axes import shape_of, split_columns, text_of
from ttsnn.accel_target.codegen.graph import Conv, Image, Map, Rows, Tensor, Weight, WGrad
from ttsnn.accel_target.codegen.importing import Value
from ttsnn.accel_target.codegen.norms import NormImport, pays, point
from ttsnn.accel_target.codegen.trains import ConvTrain
from ttsnn.accel_target.codegen.tt_linear import TTLinearImport
from ttsnn.accel_target.isa import Format, Op, Pool
from ttsnn.errors import TargetError
from ttsnn.ops import tt_conv_attrs_of
from ttsnn.passes.training.graph import operands
from ttsnn.passes.training_kernels.link import dense_link

__all__ = ["ProductImport"]


class ProductImport(NormImport, TTLinearImport):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.flattened: dict[Tensor, tuple[int, int]] = {}

    def _nn_conv2d(self, call: relax.Call) -> Image:
        x, w = self.get(call.args[0]), self.get(call.args[1])
        self.layer = self.layer_of.get(w, self.layer)
        g, shape = self._dense(call, call.args[1], call.args[0])
        y = self.image(f"{self.layer}.conv", x, (g[5], g[6], shape[2]), Format.ACTIVATION)
        chain = -1
        if self.inference and self.options.fusion and self.options.neurons:
            # with all timesteps, so that the neuron behind it is in its nest
            self.chain = chain = self.chain + 1
            self.graph.gradients[chain] = y
            self.graph.whole.add(chain)
        terms = [(x, self._weight(w, shape), g, self._binary(x))]
        self.emit(Conv(self.tag("conv"), terms, y, chain=chain))
        return y

    def _dense(
        self, call: relax.Call, w: relax.Expr | list[int], x: relax.Expr | None, size: Any = None
    ) -> Any:
        a = call.attrs
        read = (lambda k: a[k]) if isinstance(a, tvm.ir.DictAttrs) else (lambda k: getattr(a, k))
        if int(read("groups")) != 1:
            raise TargetError(
                f"target ttsnn-accel: layer {self.layer!r} is a convolution with groups; compile "
                "for cpu"
            )
        height, width = size if size is not None else shape_of(x)[-2:]
        return _stage_geometry(
            dense_link(
                shape_of(w) if not isinstance(w, list) else w,
                (height, width),
                [int(v) for v in read("strides")],
                [int(v) for v in read("padding")],
                [int(v) for v in read("dilation")],
            ).stage
        )

    def _weight(self, w: Tensor, shape: tuple[int, int, int]) -> Weight:
        return Weight(shape, (Rows(w, 0, shape[0], 0),), w.name)

    def _dense_conv2d_backward_data(self, call: relax.Call) -> Image:
        w, dy = self.get(call.args[0]), self.get(call.args[1])
        self.layer = self.layer_of.get(w, self.layer)
        size = [int(v) for v in call.attrs["size"]]
        g, shape = self._dense(call, call.args[0], None, size)
        dx = self.image(f"{self.layer}.dx", dy, (*size, shape[1]), Format.GRADIENT)
        small, at = dx, g
        if self.options.fusion and g[:2] != (1, 1) and g[2] == ((0, 0),):
            # few pixels have a gradient: the others' zeros appear in the nest that reads it
            small = self.image(f"{self.layer}.dx", dy, (*dy.shape[:2], shape[1]), Format.GRADIENT)
            at = point(*dy.shape[:2])
        terms, chain = [(dy, self._weight(w, shape), at, 0)], self._chain_of(dy)
        self.emit(Conv(self.tag("dx"), terms, small, True, chain=chain))
        if small is not dx:
            self.emit(
                Map(
                    self.tag("dx"),
                    Op.POOLB,
                    [small],
                    [dx],
                    "gradient",
                    flags=int(Pool.SUM),
                    geometry=g,
                    transpose=True,
                )
            )
        return dx

    def _chain_of(self, dy: Image) -> int:
        """Both gradients of a dense layer belong together."""
        for chain, known in self.graph.gradients.items():
            if known == dy:
                return chain
        self.chain += 1
        self.graph.gradients[self.chain] = dy
        return self.chain

    def _dense_conv2d_backward_weight(self, call: relax.Call) -> Tensor:
        x, dy = self.get(call.args[0]), self.get(call.args[1])
        kh, kw = (int(v) for v in call.attrs["kernel"])
        full = [dy.shape[2], x.shape[2], kh, kw]
        g, shape = self._dense(call, full, call.args[0])
        dw = self.temp(f"{self.layer}.grad", (1, *shape), Format.GRADIENT)
        self.emit(
            WGrad(
                self.tag("dw"),
                x,
                dy,
                g,
                shape,
                (Rows(dw, 0, shape[0], 0),),
                self._binary(x),
                chain=self._chain_of(dy),
            )
        )
        return dw

    def _matmul(self, call: relax.Call) -> Value:
        a, b = self.get(call.args[0]), self.get(call.args[1])
        if isinstance(a, Image) and isinstance(b, tuple) and isinstance(b[1], Tensor):
            w, transpose = b[1], False
        elif isinstance(a, Image) and isinstance(b, Tensor):
            w, transpose = b, not self._columns_last(call.args[1], b)
        elif isinstance(a, tuple) and isinstance(a[1], Image) and isinstance(b, Image):
            shape = (b.shape[0] * b.shape[1], b.shape[2], a[1].shape[2])
            dw = self.temp(f"{self.layer}.grad", (1, *shape), Format.GRADIENT)
            rows, g = (Rows(dw, 0, shape[0], 0),), _whole(*b.shape[:2])
            self.emit(WGrad(self.tag("dw"), b, a[1], g, shape, rows, self._binary(b)))
            return dw
        else:
            raise TargetError(f"target ttsnn-accel: product {text_of(call)} after {self.layer!r}")
        self.layer = self.layer_of.get(w, self.layer)
        if transpose and a.shape[:2] != (1, 1):
            raise TargetError(f"target ttsnn-accel: product {text_of(call)} after {self.layer!r}")
        if not transpose:
            self._split(w, a)
        size, shape = self.flattened.get(w, (1, 1)), w.shape[1:]
        g = _whole(*size)
        out = (*size, shape[1]) if transpose else (1, 1, shape[2])
        fmt = Format.GRADIENT if transpose else Format.ACCUMULATOR
        y = self.image(f"{self.layer}.linear", a, out, fmt)
        flags = 0 if transpose else self._binary(a)
        self.emit(
            Conv(
                self.tag("dx" if transpose else "linear"),
                [(a, self._weight(w, shape), g, flags)],
                y,
                transpose,
            )
        )
        return y

    def _columns_last(self, arg: relax.Var, w: Tensor) -> bool:
        """Whether a product has a matrix [in, out], as a linear layer with a folded batch norm has.

        It then comes to DRAM as it is. In training it is the product towards the input.
        """
        uses = sum(arg in operands(e) for e in self.relax.bindings.values())
        if not self.inference or uses != 1 or len(w.host_shape) != 2 or w.role != "input":
            return False
        w.shape, w.host_axes = (1, 1, *w.host_shape), (0, 1)
        return True

    def _split(self, w: Tensor, x: Image) -> None:
        """A matrix on a flattened image, and what is kept for it, gets a tap for each pixel.

        The network flattens [channels, height, width], the accelerator has channels last.
        """
        h, wide, c = x.shape
        if (h, wide) == self.flattened.get(w, (1, 1)):
            return
        if w in self.flattened or w.shape[1:3] != (1, h * wide * c):
            raise TargetError(
                f"target ttsnn-accel: layer {self.layer!r} multiplies images of {x.shape} with a "
                f"matrix of {w.host_shape}"
            )
        self.flattened[w] = h, wide
        for t in self.graph.inputs:
            if t is w or (t.host_shape == w.host_shape and t.name.startswith(f"{w.name}.")):
                t.shape = (1, h * wide, c, w.shape[3])
                columns_last = t.host_axes == (0, 1)
                t.host_view, t.host_axes = split_columns(t.shape, columns_last)

    def _tt_conv2d(self, call: relax.Call) -> Image:
        x, *cores = map(self.get, call.args)
        self.layer = self.layer_of.get(cores[0], self.layer)
        train = self._conv_train(call)
        if (
            self.variant().norm
            and (call.args[0], call.args[1]) in self.normed_calls
            and pays(prod(shape_of(call)) // cores[3].shape[3], cores[3].shape[2])
        ):
            return self.to_last_core(x, cores, train, call.args[0])
        return self.tt_forward(x, cores, train, call.args[0])

    def _tt_conv2d_backward(self, call: relax.Call) -> Any:
        x, *cores, dy = map(self.get, call.args)
        self.layer = self.layer_of.get(cores[0], self.layer)
        train, chain = self._conv_train(call), self.normed.get(dy.tensor)
        if chain is not None:
            dh = self.gradient_at_last(chain)
            return self.tt_backward(x, cores, dh, train, call.args[0], chain.grad)
        return self.tt_backward(x, cores, dy, train, call.args[0])

    def _conv_train(self, call: relax.Call) -> ConvTrain:
        return ConvTrain(tt_conv_attrs_of(call), self.options.merge_cross)


def _whole(height: int, width: int) -> Any:
    """A convolution of a whole image to one pixel."""
    taps = tuple((i, j) for i in range(height) for j in range(width))
    return height, width, taps, height, width, 1, 1


def _stage_geometry(stage) -> Any:
    g = (*stage.strides, stage.taps, *stage.in_size, *stage.out_size)
    return g, (len(stage.taps), stage.in_channels, stage.out_channels)
