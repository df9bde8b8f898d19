"""Fully connected layers of a training program, by the kernels of convolutions.

A matrix with some rows is an image whose pixels are the rows. Then a product is a convolution of
single pixels, its gradients are that convolution's.
"""

from __future__ import annotations

from math import prod

import numpy as np
from tvm import relax

from ttsnn.passes.layers.config import Stage
from ttsnn.passes.linear_chain import LinearStep, linear_steps
from ttsnn.passes.shapes import dims, known_dims
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training_kernels.converter import Converter
from ttsnn.passes.training_kernels.link import Link
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["LINEAR_HANDLERS"]

MOST_PIXELS = 64
"""Rows of a matrix that make one image: images run in parallel."""


def _image_size(rows: int) -> tuple[int, int, int]:
    """(images, height, width) of a matrix: images of one row of pixels, or one column of all."""
    width = next(d for d in range(min(rows, MOST_PIXELS), 0, -1) if rows % d == 0)
    while width % 2 == 0 and width > 8 and rows // width < 4:
        width //= 2
    return (rows // width, 1, width) if 4 * width > min(rows, 16) else (1, rows, 1)


class _Products:
    """Products of matrices, emitted into a converter's builder."""

    def __init__(self, c: Converter) -> None:
        self.c = c

    def _image(self, a: relax.Expr) -> tuple[relax.Var, tuple[int, int]]:
        rows, columns = known_dims(a)
        images, height, width = _image_size(rows)
        expr = self.c.reshape(self.c.bind(a), (1, images, height, width, columns))
        return expr, (height, width)

    def _link(self, size: tuple[int, int], shape: tuple[int, int]) -> Link:
        """The convolution with a weight [Cout, Cin]."""
        cout, cin = shape
        stage = Stage(((0, 0),), size, size, cin, cout)
        return Link(stage, WeightMap((shape,), (((0, 0),),)), (0,), (cin, cout))

    def times(self, a: relax.Expr, w: relax.Expr) -> relax.Var:
        """``a w`` of [rows, k] and [k, n]."""
        x, size = self._image(a)
        k, n = known_dims(w)
        out = self.c.k.input_grad(self._link(size, (k, n)), x, [w])
        return self.c.reshape(out, (known_dims(a)[0], n))

    def times_transposed(self, a: relax.Expr, w: relax.Expr) -> relax.Var:
        """``a wᵀ`` of [rows, k] and [n, k]."""
        x, size = self._image(a)
        n, k = known_dims(w)
        out = self.c.k.conv(self._link(size, (n, k)), x, [w])
        return self.c.reshape(out, (known_dims(a)[0], n))

    def transposed_times(self, a: relax.Expr, b: relax.Expr) -> relax.Var:
        """``aᵀ b`` of [rows, k] and [rows, n]."""
        (x, size), (dy, _) = self._image(a), self._image(b)
        k, n = known_dims(a)[1], known_dims(b)[1]
        dw = self.c.k.product_sums(self._link(size, (n, k)), x, dy)
        return self.c.reshape(dw, (k, n))


def _transposed(c: Converter, expr: relax.Expr) -> relax.Expr | None:
    """The matrix whose transpose a value is."""
    value = c.bound.get(expr) if isinstance(expr, relax.Var) else None
    if value is None or op_name(value) != "relax.permute_dims" or value.args[0].ty.ndim != 2:
        return None
    axes = value.attrs.axes
    return value.args[0] if axes is None or [int(a) for a in axes] == [1, 0] else None


def _matmul(c: Converter, _var: relax.Var, call: relax.Call) -> relax.Expr | None:
    a, b = call.args
    rows, columns = dims(a), dims(b)
    if rows is None or columns is None or len(columns) != 2 or len(rows) < 2:
        return None
    if 0 in known_dims(call):
        return None
    dtypes = {str(v.ty.dtype) for v in (a, b, call)}
    if len(dtypes) > 1 or not dtypes <= {"float32", "float64"}:
        return None
    products, left, right = _Products(c), _transposed(c, a), _transposed(c, b)
    if left is not None and right is None and len(rows) == 2:
        return products.transposed_times(c.get(left), c.get(b))
    flat = c.reshape(c.bind(c.get(a)), (prod(rows[:-1]), rows[-1]))
    if right is not None:
        out = products.times_transposed(flat, c.get(right))
    else:
        out = products.times(flat, c.get(b))
    return c.reshape(out, known_dims(call))


# -- tensor trains -----------------------------------------------------------------------------


def _steps(cores: list[relax.Expr]) -> list[LinearStep]:
    return linear_steps([np.broadcast_to(np.float32(0), known_dims(g)) for g in cores])


def _core_matrix(c: Converter, core: relax.Expr) -> relax.Var:
    """A core [r, m, n, r'] as [r·n, m·r']."""
    r, m, n, after = known_dims(core)
    moved = c.bind(relax.op.permute_dims(core, [0, 2, 1, 3]))
    return c.reshape(moved, (r * n, m * after))


def _states(c: Converter, call: relax.Call) -> list[relax.Var]:
    """What the product with each core reads, as matrices, and the chain's result."""
    key = ("linear", *call.args)
    if key not in c.chains:
        x, *cores = (c.get(a) for a in call.args)
        rows, products = prod(known_dims(x)[:-1]), _Products(c)
        state, out = c.bind(x), []
        for step, core in zip(_steps(cores), cores):
            state = c.reshape(state, step.view([rows]))
            state = c.bind(relax.op.permute_dims(state, list(step.axes)))
            out.append(c.reshape(state, step.matrix([rows])))
            state = products.times(out[-1], _core_matrix(c, core))
        c.chains[key] = [*out, state]
    return c.chains[key]


def _tt_linear(c: Converter, _var: relax.Var, call: relax.Call) -> relax.Expr:
    return c.reshape(_states(c, call)[-1], known_dims(call))


def _tt_linear_backward(c: Converter, var: relax.Var, call: relax.Call) -> list:
    forward = relax.Call(call.op, list(call.args[:-1]), call.attrs)
    states, products = _states(c, forward), _Products(c)
    x, *cores = (c.get(a) for a in call.args[:-1])
    rows, steps, grads = prod(known_dims(x)[:-1]), _steps(cores), []
    g = c.bind(c.get(call.args[-1]))
    for i in range(len(cores) - 1, -1, -1):
        r, m, n, after = known_dims(cores[i])
        g = c.reshape(g, (known_dims(states[i])[0], m * after))
        dw = products.transposed_times(states[i], g)
        dw = c.reshape(dw, (r, n, m, after))
        grads.append(c.bind(relax.op.permute_dims(dw, [0, 2, 1, 3])))
        if i > 0 or (var, 0) in c.item_reads:
            step = steps[i]
            g = products.times_transposed(g, _core_matrix(c, cores[i]))
            view = step.view([rows])
            g = c.reshape(g, [view[a] for a in step.axes])
            back = [step.axes.index(a) for a in range(len(step.axes))]
            g = c.bind(relax.op.permute_dims(g, back))
    dx = c.reshape(g, known_dims(x)) if (var, 0) in c.item_reads else None
    return [dx, *reversed(grads)]


LINEAR_HANDLERS = {
    "relax.matmul": _matmul,
    "relax.tt.linear": _tt_linear,
    "relax.tt.linear_backward": _tt_linear_backward,
}
"""Operator → what converts it."""
