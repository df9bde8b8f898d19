"""Weights of convolutions [taps, Cin, Cout] from parameters, and gradients the way back.

Weights change with every step, so what inference does once with NumPy are a few small operators
here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from tvm import relax

from ttsnn.ops import TTConvAttrs
from ttsnn.passes.contraction import chain_of
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.shapes import known_dims

__all__ = ["Link", "dense_link", "tt_links"]

Bind = Callable[[relax.Expr], relax.Var]


@dataclass(frozen=True)
class Link:
    """One convolution of a layer.

    Attributes:
        stage: its geometry.
        sources: which parameters of the layer's call it is made of: one [Cout, Cin, kernel…], or
            the two branches of a cross.
        sizes: kernel sizes of the sources.
    """

    stage: Stage
    sources: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]

    def weight(self, params: Sequence[relax.Expr], bind: Bind) -> relax.Var:
        """[taps, Cin, Cout]."""
        taps = [_taps_first(params[i], bind) for i in self.sources]
        if len(taps) == 1:
            return taps[0]
        down, across = taps
        (kh,), (kw,) = self.sizes
        parts = [
            _rows(down, 0, kh // 2, bind),
            bind(relax.op.add(_row(down, kh // 2, bind), _row(across, kw // 2, bind))),
            _rows(down, kh // 2 + 1, kh, bind),
            _rows(across, 0, kw // 2, bind),
            _rows(across, kw // 2 + 1, kw, bind),
        ]
        return bind(_half(_joined(parts, bind)))

    def gradients(self, dw: relax.Var, bind: Bind) -> list[relax.Var]:
        """Of the sources, from that of the weight."""
        if len(self.sources) == 1:
            return [_taps_last(dw, self.sizes[0], bind)]
        (kh,), (kw,) = self.sizes
        dw = bind(_half(dw))
        down = _rows(dw, 0, kh, bind)
        across = [
            _rows(dw, kh, kh + kw // 2, bind),
            _row(dw, kh // 2, bind),
            _rows(dw, kh + kw // 2, kh + kw - 1, bind),
        ]
        return [
            _taps_last(down, (kh,), bind),
            _taps_last(_joined(across, bind), (kw,), bind),
        ]


def dense_link(
    shape: Sequence[int],
    in_size: tuple[int, int],
    strides: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Link:
    """A dense convolution with a weight [Cout, Cin, Kh, Kw]."""
    cout, cin, kh, kw = shape
    (sh, sw), (top, left, bottom, right), (dh, dw) = strides, padding, dilation
    attrs = TTConvAttrs(strides=(sh, sw), padding=(top, left, bottom, right), dilation=(dh, dw))
    taps = tuple((y * dh - top, x * dw - left) for y in range(kh) for x in range(kw))
    size = attrs.out_size(in_size, (kh, kw))
    return Link(Stage(taps, in_size, size, cin, cout, attrs.strides), (0,), ((kh, kw),))


def tt_links(
    kind: str, attrs: TTConvAttrs, shapes: Sequence[tuple[int, ...]], in_size: tuple[int, int]
) -> list[Link]:
    """The chain of a ``tt.conv2d``: ``kind`` as in :data:`ttsnn.passes.contraction.CHAINS`."""
    chain = chain_of(kind, attrs, [np.broadcast_to(np.float32(0), s) for s in shapes], in_size)
    sources = {"cross": (1, 2)} | {f"g{i + 1}": (i,) for i in range(4)}
    return [
        Link(stage, sources[name], tuple(tuple(shapes[i][2:]) for i in sources[name]))
        for name, (stage, _) in chain.items()
    ]


def _taps_first(param: relax.Expr, bind: Bind) -> relax.Var:
    """[Cout, Cin, kernel…] → [taps, Cin, Cout]."""
    cout, cin, *kernel = known_dims(param)
    out = bind(relax.op.permute_dims(param, [*range(2, 2 + len(kernel)), 1, 0]))
    return bind(relax.op.reshape(out, (int(np.prod(kernel, dtype=int)), cin, cout)))


def _taps_last(grad: relax.Var, kernel: Sequence[int], bind: Bind) -> relax.Var:
    """[taps, Cin, Cout] → [Cout, Cin, kernel…]."""
    _, cin, cout = known_dims(grad)
    out = bind(relax.op.reshape(grad, (*kernel, cin, cout)))
    n = len(kernel)
    return bind(relax.op.permute_dims(out, [n + 1, n, *range(n)]))


def _rows(x: relax.Var, begin: int, end: int, bind: Bind) -> relax.Var | None:
    if begin >= end:
        return None
    if (begin, end) == (0, known_dims(x)[0]):
        return x
    return bind(relax.op.strided_slice(x, [0], [begin], [end]))


def _row(x: relax.Var, index: int, bind: Bind) -> relax.Var:
    row = _rows(x, index, index + 1, bind)
    assert row is not None
    return row


def _joined(parts: Sequence[relax.Var | None], bind: Bind) -> relax.Var:
    there = [p for p in parts if p is not None]
    return there[0] if len(there) == 1 else bind(relax.op.concat(there, axis=0))


def _half(x: relax.Var) -> relax.Expr:
    return relax.op.multiply(x, relax.const(0.5, str(x.ty.dtype)))
