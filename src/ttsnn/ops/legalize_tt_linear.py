"""Reference legalisation of ``relax.tt.linear`` and its backward: through the dense weight.

The weight is put together core by core, ``y = x Wᵀ`` is a matrix product; backward, the gradient
of W is contracted with the cores to the left and to the right of each core.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import relax, te
from tvm.relax import op as R

from ttsnn.ops.registry import register_attr
from ttsnn.ops.tt_linear import TT_LINEAR, TT_LINEAR_BACKWARD

__all__: list[str] = []


def _tt_product(a: te.Tensor, b: te.Tensor) -> te.Tensor:
    """[r, M, N, s] and [s, m, n, q] → [r, M·m, N·n, q]: two neighbouring cores as one."""
    r, big_m, big_n, rank = a.shape
    _, m, n, q = b.shape
    s = te.reduce_axis((0, rank), "s")
    return te.compute(
        (r, big_m * m, big_n * n, q),
        lambda i, row, col, j: te.sum(
            a[i, row // m, col // n, s] * b[s, row % m, col % n, j], axis=s
        ),
        name="tt_product",
    )


def _tt_matrix(whole: te.Tensor) -> te.Tensor:
    """Wᵀ [n, m] of [1, m, n, 1]."""
    _, m, n, _ = whole.shape
    return te.compute((n, m), lambda col, row: whole[0, row, col, 0], name="tt_matrix")


def _tt_linear_dx(dy: te.Tensor, whole: te.Tensor) -> te.Tensor:
    """dy W for dy [..., m] and W as [1, m, n, 1]."""
    row = te.reduce_axis((0, whole.shape[1]), "row")
    return te.compute(
        (*dy.shape[:-1], whole.shape[2]),
        lambda *i: te.sum(dy[(*i[:-1], row)] * whole[0, row, i[-1], 0], axis=row),
        name="tt_linear_dx",
    )


def _tt_linear_dw(x: te.Tensor, dy: te.Tensor) -> te.Tensor:
    """Σ dyᵀ x over all leading axes, [m, n]."""
    lead = [te.reduce_axis((0, s), f"n{i}") for i, s in enumerate(x.shape[:-1])]

    def element(row: Any, col: Any) -> Any:
        value = dy[(*lead, row)] * x[(*lead, col)]
        return te.sum(value, axis=lead) if lead else value

    return te.compute((dy.shape[-1], x.shape[-1]), element, name="tt_linear_dw")


def _contract_left(dw: te.Tensor, left: te.Tensor) -> te.Tensor:
    """[M·m, N·n] and [1, M, N, r] → [r, m, n]: away with the cores to the left."""
    _, big_m, big_n, r = left.shape
    m, n = dw.shape[0] // big_m, dw.shape[1] // big_n
    i, j = te.reduce_axis((0, big_m), "i"), te.reduce_axis((0, big_n), "j")
    return te.compute(
        (r, m, n),
        lambda a, row, col: te.sum(dw[i * m + row, j * n + col] * left[0, i, j, a], axis=[i, j]),
        name="tt_contract_left",
    )


def _contract_right(g: te.Tensor, right: te.Tensor) -> te.Tensor:
    """[r, m·M, n·N] and [q, M, N, 1] → [r, m, n, q]: away with the cores to the right."""
    q, big_m, big_n, _ = right.shape
    r, m, n = g.shape[0], g.shape[1] // big_m, g.shape[2] // big_n
    i, j = te.reduce_axis((0, big_m), "i"), te.reduce_axis((0, big_n), "j")
    return te.compute(
        (r, m, n, q),
        lambda a, row, col, b: te.sum(
            g[a, row * big_m + i, col * big_n + j] * right[b, i, j, 0], axis=[i, j]
        ),
        name="tt_contract_right",
    )


def _lefts(bb: relax.BlockBuilder, cores: list[relax.Expr]) -> list[relax.Expr]:
    """Products of the first 1, 2, … cores, [1, M, N, r]."""
    out = [cores[0]]
    for core in cores[1:]:
        out.append(bb.emit_te(_tt_product, out[-1], core))
    return out


def _rights(bb: relax.BlockBuilder, cores: list[relax.Expr]) -> list[relax.Expr]:
    """Products of the cores from the second, third, … to the last, [r, M, N, 1]."""
    out = [cores[-1]]
    for core in cores[-2:0:-1]:
        out.append(bb.emit_te(_tt_product, core, out[-1]))
    return out[::-1]


def _core_grads(
    bb: relax.BlockBuilder, dw: relax.Expr, cores: list[relax.Expr], lefts: list[relax.Expr]
) -> list[relax.Expr]:
    """Gradients to the cores from that to the dense weight [m, n]."""
    rights, grads, last = _rights(bb, cores), [], len(cores) - 1
    for k, core in enumerate(cores):
        g = dw if k == 0 else bb.emit_te(_contract_left, dw, lefts[k - 1])
        if k == 0:
            g = bb.emit(R.expand_dims(g, 0))
        if k == last:
            g = bb.emit(R.reshape(g, core.ty.shape))
        else:
            g = bb.emit_te(_contract_right, g, rights[k])
        grads.append(g)
    return grads


def _legalize(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    x, *cores = call.args
    return R.matmul(x, bb.emit_te(_tt_matrix, _lefts(bb, cores)[-1]))


def _legalize_backward(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    x, *cores, dy = call.args
    lefts = _lefts(bb, cores)
    dx = bb.emit_te(_tt_linear_dx, dy, lefts[-1])
    dw = bb.emit_te(_tt_linear_dw, x, dy)
    return relax.Tuple([dx, *_core_grads(bb, dw, cores, lefts)])


register_attr(TT_LINEAR, "FLegalize", _legalize)
register_attr(TT_LINEAR_BACKWARD, "FLegalize", _legalize_backward)
