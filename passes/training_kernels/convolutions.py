"""Convolutions of a training step, dense or tensor-train, and their gradients, channels last."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import ClassVar

from tvm import relax

from ttsnn.ops import tt_conv_attrs_of
from ttsnn.passes.shapes import known_dims
from ttsnn.passes.training_kernels.images import Image
from ttsnn.passes.training_kernels.link import Link, dense_link, tt_links
from ttsnn.passes.training_kernels.lowering import Lowering

__all__ = ["ConvLowering"]


class ConvLowering(Lowering):
    """Handlers of convolutions; how a chain is cut into kernels is each target's own."""

    @abstractmethod
    def chain_result(
        self, call: relax.Call, part: int, links: list[Link], x: relax.Var
    ) -> relax.Var:
        """What a part of a ``tt.conv2d`` makes of its images."""

    @abstractmethod
    def chain_grads(
        self,
        call: relax.Call,
        part: tuple[int, int, int],
        links: list[Link],
        x: Image,
        to_x: bool,
    ) -> tuple[relax.Var, list[list[relax.Var]]]:
        """Gradients of a part of a ``tt.conv2d``.

        Args:
            call: of ``tt.conv2d_backward``.
            part: number, first image and end of the part.
            links: its chain.
            x: operand of the layer, all images.
            to_x: whether the gradient to x is wanted.

        Returns:
            The gradient to x, or anything where it is not wanted, and those of each link's
            sources.
        """

    # -- dense -------------------------------------------------------------------------------

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

    def _link(self, shape: Sequence[int], size: tuple[int, int], call: relax.Call) -> Link:
        """The dense convolution that a gradient's call belongs to."""
        geometry = ([int(v) for v in call.attrs[n]] for n in ("strides", "padding", "dilation"))
        return dense_link(tuple(shape), size, *geometry)

    # -- tensor trains -----------------------------------------------------------------------

    def _tt_parts(self, call: relax.Call) -> list[tuple[int, int, list[Link]]]:
        """Ranges of images and the chain that they run."""
        attrs = tt_conv_attrs_of(call)
        shape = known_dims(call.args[0])
        size, images = tuple(shape[-2:]), prod(shape[:-3])
        shapes = [tuple(known_dims(g)) for g in call.args[1:5]]
        pad = self.k.rank_multiple(str(call.args[0].ty.dtype))

        def links(kind: str) -> list[Link]:
            return tt_links(kind, attrs, shapes, size, pad)

        if attrs.mode != "htt":
            return [(0, images, links(attrs.mode))]
        full = shape[0] if attrs.timesteps < 0 else attrs.timesteps
        cut = full * (images // shape[0])
        parts = [(0, cut, "ptt"), (cut, images, "half")]
        return [(a, b, links(kind)) for a, b, kind in parts if a < b]

    def _part(self, image: Image, begin: int, end: int) -> relax.Var:
        if (begin, end) == (0, image.sizes[0]):
            return image.expr
        return self.bind(relax.op.strided_slice(image.expr, [1], [begin], [end]))

    def _joined(self, parts: list[relax.Var], like: Image) -> Image:
        out = parts[0]
        if len(parts) > 1:
            out = self.bind(relax.op.concat(parts, axis=1))
        return replace(like, expr=out)

    def _tt_conv(self, _var: relax.Var, call: relax.Call) -> Image:
        x = self.known_image(call.args[0], compact=True)
        parts = [
            self.chain_result(call, i, links, self._part(x, begin, end))
            for i, (begin, end, links) in enumerate(self._tt_parts(call))
        ]
        return self._joined(parts, x)

    def _tt_backward(self, var: relax.Var, call: relax.Call) -> list:
        x, to_x = self.known_image(call.args[0], compact=True), (var, 0) in self.item_reads
        grads: list[relax.Expr | None] = [None] * 4
        parts = []
        for i, (begin, end, links) in enumerate(self._tt_parts(call)):
            dx, each = self.chain_grads(call, (i, begin, end), links, x, to_x)
            parts.append(dx)
            for link, news in zip(links, each, strict=True):
                for source, new in zip(link.sources, news):
                    old = grads[source]
                    grads[source] = new if old is None else self.bind(relax.op.add(old, new))
        for i, core in enumerate(call.args[1:5]):
            if grads[i] is None:
                grads[i] = self.bind(relax.op.zeros(core.ty.shape, str(core.ty.dtype)))
        return [self._joined(parts, x) if to_x else None, *grads]

    handlers: ClassVar = {
        **Lowering.handlers,
        "relax.nn.conv2d": _conv,
        "relax.dense.conv2d_backward_data": _conv_data,
        "relax.dense.conv2d_backward_weight": _conv_weight,
        "relax.tt.conv2d": _tt_conv,
        "relax.tt.conv2d_backward": _tt_backward,
    }
