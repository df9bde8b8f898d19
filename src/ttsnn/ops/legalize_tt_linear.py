"""Reference legalisation of ``relax.tt.linear`` and its backward: through the dense weight.

The weight is put together core by core, ``y = x Wᵀ`` is a matrix product; backward, the gradient
of W is contracted with the cores to the left and to the right of each core.
"""

from __future__ import annotations

from math import prod

import tvm
from tvm import relax
from tvm.relax import op as R

from ttsnn.ops.registry import register_attr
from ttsnn.ops.tt_linear import TT_LINEAR, TT_LINEAR_BACKWARD
from ttsnn.ops.types import dims

__all__: list[str] = []


class _Builder:
    """Emits reshapes, permutations and matrix products of the cores."""

    def __init__(self, bb: relax.BlockBuilder, cores: list[relax.Expr]) -> None:
        self.bb = bb
        self.cores = cores
        self.shapes = [[int(s) for s in dims(c.ty) or []] for c in cores]

    def emit(self, expr: relax.Expr) -> relax.Expr:
        return self.bb.emit(expr)

    def product(self, a: relax.Expr, b: relax.Expr) -> relax.Expr:
        """[r, M, N, s] and [s, m, n, q] → [r, M·m, N·n, q]: two neighbouring cores as one."""
        r, big_m, big_n, s = (int(v) for v in dims(a.ty) or [])
        _, m, n, q = (int(v) for v in dims(b.ty) or [])
        out = self.emit(
            R.matmul(
                self.emit(R.reshape(a, [r * big_m * big_n, s])),
                self.emit(R.reshape(b, [s, m * n * q])),
            )
        )
        out = self.emit(R.reshape(out, [r, big_m, big_n, m, n, q]))
        out = self.emit(R.permute_dims(out, [0, 1, 3, 2, 4, 5]))
        return self.emit(R.reshape(out, [r, big_m * m, big_n * n, q]))

    def lefts(self) -> list[relax.Expr]:
        """Products of the first 1, 2, … cores, [1, M, N, r]."""
        out = [self.cores[0]]
        for core in self.cores[1:]:
            out.append(self.product(out[-1], core))
        return out

    def rights(self) -> list[relax.Expr]:
        """Products of the last 1, 2, … cores, [r, M, N, 1]."""
        out = [self.cores[-1]]
        for core in self.cores[-2::-1]:
            out.append(self.product(core, out[-1]))
        return out

    def weight(self, whole: relax.Expr) -> relax.Expr:
        """[1, m, n, 1] → [m, n]."""
        _, m, n, _ = (int(v) for v in dims(whole.ty) or [])
        return self.emit(R.reshape(whole, [m, n]))

    def core_grads(self, dw: relax.Expr) -> list[relax.Expr]:
        """Gradients to the cores from that to the dense weight [m, n]."""
        lefts, rights = self.lefts(), self.rights()[::-1]
        grads = []
        for k, (r, m, n, q) in enumerate(self.shapes):
            m0, n0 = (prod(s[i] for s in self.shapes[:k]) for i in (1, 2))
            m1, n1 = (prod(s[i] for s in self.shapes[k + 1 :]) for i in (1, 2))
            g = self.emit(R.reshape(dw, [m0, m, m1, n0, n, n1]))
            g = self.emit(R.permute_dims(g, [0, 3, 1, 4, 2, 5]))
            g = self.emit(R.reshape(g, [m0 * n0, m * n * m1 * n1]))
            if k > 0:
                left = self.emit(R.reshape(lefts[k - 1], [m0 * n0, r]))
                g = self.emit(R.matmul(self.emit(R.permute_dims(left)), g))
            g = self.emit(R.reshape(g, [r * m * n, m1 * n1]))
            if k + 1 < len(self.cores):
                right = self.emit(R.reshape(rights[k + 1], [q, m1 * n1]))
                g = self.emit(R.matmul(g, self.emit(R.permute_dims(right))))
            grads.append(self.emit(R.reshape(g, [r, m, n, q])))
        return grads


def _legalize(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    b = _Builder(bb, list(call.args[1:]))
    w = b.weight(b.lefts()[-1])
    return R.matmul(call.args[0], b.emit(R.permute_dims(w)))


def _legalize_backward(bb: relax.BlockBuilder, call: tvm.ir.Call) -> relax.Expr:
    x, *cores, dy = call.args
    b = _Builder(bb, cores)
    w = b.weight(b.lefts()[-1])
    dx = b.emit(R.matmul(dy, w))
    # a batch of any rank is one long axis in the weight's gradient
    rows = [b.emit(R.reshape(e, [prod(dims(e.ty)[:-1], start=1), dims(e.ty)[-1]])) for e in (x, dy)]
    dw = b.emit(R.matmul(b.emit(R.permute_dims(rows[1])), rows[0]))
    return relax.Tuple([dx, *b.core_grads(dw)])


register_attr(TT_LINEAR, "FLegalize", _legalize)
register_attr(TT_LINEAR_BACKWARD, "FLegalize", _legalize_backward)
