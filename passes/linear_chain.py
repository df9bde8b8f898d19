"""A TT linear layer as a row of matrix products, one for each core or group of cores.

With cores G_k [r, m_k, n_k, r'] the state before core k is [rows, m_1…m_{k−1}, n_k, n_{k+1}…n_d]
and the rank r. One product sums over (r, n_k) and makes (m_k, r'): its matrix is the core packed
as [r·n_k, m_k·r'], its rows are everything else. The rank and n_k are brought next to each other
by a transpose before it; the last product leaves the result in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from ttsnn.errors import PassError
from ttsnn.passes.contraction import Form, form_text, groupings
from ttsnn.passes.shapes import product

__all__ = ["LinearStep", "linear_forms", "linear_steps", "merge_cores", "parse_linear_form"]


@dataclass(frozen=True)
class LinearStep:
    """One product of the chain.

    Attributes:
        weight: [r·n_k, m_k·r'].
        sizes: of the state behind the leading axes, before the transpose.
        axes: order of the transpose, the folded leading axes being axis 0.
        others: rows of the product for one row of x.
    """

    weight: np.ndarray
    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    others: int

    def view(self, lead: Sequence) -> list:
        """Shape of the state before the transpose; ``lead`` are x's axes but the last."""
        return [product(lead), *self.sizes]

    def matrix(self, lead: Sequence) -> list:
        """Shape of the product's first operand."""
        return [product([*lead, self.others]), self.weight.shape[0]]


def linear_forms(cores: int) -> list[Form]:
    """Ways to merge neighbours of so many cores: none first, the dense weight last."""
    return groupings([str(i) for i in range(cores)])


def parse_linear_form(text: str, cores: int, layer: str) -> Form:
    """The form that ``chain``, ``dense`` or a text such as ``0*1|2`` means.

    Raises:
        PassError: it is no form of so many cores.
    """
    forms = linear_forms(cores)
    named = {form_text(f): f for f in forms} | {"chain": forms[0], "dense": forms[-1]}
    if text not in named:
        raise PassError(
            f"layer {layer}: tt.linear with {cores} cores has the forms {', '.join(named)}, "
            f"not {text!r}"
        )
    return named[text]


def merge_cores(cores: Sequence[np.ndarray], form: Form) -> list[np.ndarray]:
    """One core [r, Πm, Πn, r'] in float64 for each group of neighbours."""
    out = []
    for group in form:
        merged, *rest = (np.asarray(cores[int(i)], np.float64) for i in group)
        for core in rest:
            both = np.einsum("amnb,bpqc->ampnqc", merged, core, optimize=True)
            a, m, p, n, q, c = both.shape
            merged = both.reshape(a, m * p, n * q, c)
        out.append(merged)
    return out


def linear_steps(cores: Sequence[np.ndarray]) -> list[LinearStep]:
    """The products that multiply by a TT-matrix, in order."""
    steps, done, before = [], 1, 1
    rest = prod(c.shape[2] for c in cores)
    for core in cores:
        r, m, n, r_next = core.shape
        rest //= n
        # state: earlier m, then n_k with what follows, then (m_{k−1}, r) of the last product
        sizes = (done // before, n, rest, before, r)
        # → earlier m, m_{k−1}, what follows, r, n_k
        axes = (0, 1, 4, 3, 5, 2)
        weight = core.transpose(0, 2, 1, 3).reshape(r * n, m * r_next)
        steps.append(LinearStep(weight, sizes, axes, done * rest))
        done, before = done * m, m
    return steps
