"""Batch norms in training, on what they normalize or, behind a tensor train, on its cores.

Behind a chain of cores the batch norm's operand is y = W h: W is the last core, and h, the chain's
last intermediate, has few channels. Everything that the batch norm needs follows from h alone:

    mean      W h̄                                     h̄ = Σ h / n
    Σ y²      diag(W S Wᵀ)                            S = Σ h hᵀ
    Σ dy·x̂    diag(W G) / σ                           G = Σ (h - h̄) dyᵀ
    dW        D G - (S Wᵀ - Σh ȳᵀ) diag(q)            D = γ / σ,  q = D Σ(dy·x̂) / (n σ)
    dh        Wᵀ D dy - M h - Wᵀ (D Σdy / n - q ȳ)     M = Wᵀ diag(q) W

So y is computed once, where it is used, and its gradient dy is read once, where it is made: neither
needs to be in DRAM. What is there is h, and Wᵀ D dy, which has as few channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.contractions import TTImport
from ttsnn.accel_target.codegen.graph import (
    Box,
    Conv,
    Image,
    Map,
    Rows,
    Small,
    Sum,
    Tensor,
    Weight,
    WGrad,
)
from ttsnn.accel_target.codegen.normed import normed_calls
from ttsnn.accel_target.codegen.trains import Train
from ttsnn.accel_target.isa import Format, Op, Reduce, Vec

__all__ = ["NormImport", "pays", "point"]


@dataclass(eq=False)
class Normed:
    """A chain without its last core, whose batch norm works on its last intermediate.

    Attributes:
        layer: name of the chain's layer.
        h: last intermediate.
        core: last core, as it is in DRAM.
        weight: the same, as a weight.
        geometry: of the last core.
        chain: number of the chain.
        total, mean, cov, scale: Σh, h̄, S and D, once the batch norm's statistics are there.
        u: Wᵀ D dy.
        matrix, offset: M, and what stays the same for all pixels in dh.
        grad: dW.
    """

    layer: str
    h: Image
    core: Tensor
    weight: Weight
    geometry: Any
    chain: int
    total: Tensor | None = None
    mean: Tensor | None = None
    cov: Tensor | None = None
    scale: Tensor | None = None
    u: Image | None = None
    matrix: Weight | None = None
    offset: Tensor | None = None
    grad: Tensor | None = None


def pays(pixels: int, rank: int) -> bool:
    """Whether a batch norm is worth doing on the cores: S must be smaller than h is.

    Args:
        pixels: of all images and timesteps.
        rank: channels of h.
    """
    return pixels > rank


def point(height: int, width: int) -> Any:
    """A 1×1 convolution."""
    return (1, 1, ((0, 0),), height, width, height, width)


class NormImport(TTImport):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.normed: dict[Tensor, Normed] = {}
        self.normed_calls = normed_calls(self.relax)
        self._one: Tensor | None = None

    def _snn_batch_norm_train(self, call: relax.Call) -> Any:
        x, gamma, beta, mean, var = map(self.get, call.args)
        self.layer = self.layer_of.get(gamma, self.layer)
        c, n = x.shape[2], x.steps * self.N * x.shape[0] * x.shape[1]
        epsilon, momentum = float(call.attrs["epsilon"]), float(call.attrs["momentum"])
        chain = self.normed.get(x.tensor)
        sums = self._sums(x, c) if chain is None else self._sums_of_core(chain, c, n)
        stat = self.temp(f"{self.layer}.stat", (1, 2, 1, c), Format.STATISTIC)
        self.emit(Small(self.tag("bn"), Op.BN_STAT, Box(stat), [sums], scalars=(n, epsilon)))
        new = []
        for which, old in enumerate((mean, var)):
            t = self.temp(f"{old.name}.new", old.shape, old.format)
            self.emit(
                Small(
                    self.tag("bn"),
                    Op.BN_RUN,
                    Box(t),
                    [sums, (Box(old),)],
                    scalars=(n, momentum),
                    flags=which,
                )
            )
            new.append(t)
        if chain is not None:
            chain.scale = self.vector(Vec.MUL, Box(stat, None, (1, 1)), gamma)
        y = self.image(f"{self.layer}.y", x, x.shape, Format.ACTIVATION)
        rows = (Rows(stat, 0, 2, 0), Rows(gamma, 0, 1, 2), Rows(beta, 0, 1, 3))
        x = self.output_again(x, None) if chain is None else self._last_core(chain, x)
        self.emit(Map(self.tag("bn"), Op.BN_APPLY, [x], [y], rows=rows, width=4))
        self.layer_of[y.tensor] = self.layer
        return y, *new, stat, stat

    def _snn_batch_norm_train_backward(self, call: relax.Call) -> Any:
        x, gamma, stat, _, dy = map(self.get, call.args)
        self.layer = self.layer_of.get(gamma, self.layer)
        c, n = x.shape[2], x.steps * self.N * x.shape[0] * x.shape[1]
        dx = self.image(f"{self.layer}.dx", x, x.shape, Format.GRADIENT)
        if x.tensor in self.normed:
            self.normed[dx.tensor] = chain = self.normed[x.tensor]
            return dx, *self._core_norm_grads(chain, stat, dy, n)
        sums = self.temp(f"{self.layer}.dsums", (1, 2, 1, c), Format.STATISTIC)
        self.emit(Sum(self.tag("bn"), Op.BN_SUMS, [dy, x], sums, rows=(Rows(stat, 0, 2, 0),)))
        grads = []
        for row, name in ((1, "weight"), (0, "bias")):
            t = self.temp(f"{self.layer}.{name}.grad", (1, 1, 1, c), Format.STATISTIC)
            box = Box(sums, None, (row, 1))
            self.emit(Small(self.tag("bn"), Op.VEC, Box(t), [(box,)], flags=int(Vec.COPY)))
            grads.append(t)
        rows = (Rows(stat, 0, 2, 0), Rows(gamma, 0, 1, 2), Rows(sums, 0, 2, 3))
        x = self.output_again(x, dx)
        self.emit(Map(self.tag("bn"), Op.BN_GRAD, [dy, x], [dx], rows=rows, width=5, scalars=(n,)))
        return dx, *grads

    def _sums(self, x: Image, c: int) -> tuple[Box, ...]:
        """Σ x and Σ x², from x."""
        sums = self.temp(f"{self.layer}.sums", (1, 2, 1, c), Format.STATISTIC)
        # where timesteps are computed apart, so are their sums: beside the computation
        for start, steps in self.parts.get(x.tensor, [(0, x.steps)]):
            for row, kind in enumerate((Reduce.SUM, Reduce.SUM_SQUARES)):
                part = x.part(start, steps)
                self.emit(Sum(self.tag("bn"), Op.RED, [part], sums, row, int(kind), more=start > 0))
        return (Box(sums),)

    # -- on the cores --

    def to_last_core(self, x: Image, cores: list[Tensor], train: Train, key: relax.Expr) -> Image:
        """``tt.conv2d`` without its last core; the result is computed where it is used."""
        self.chain += 1
        h: Image | None = None
        for start, steps, kind in train.parts(x.steps):
            links = self._chain(train, cores, x, kind)
            weights = [self._weights(link, cores) for link in links]
            ((name, last),) = links[-1].items()
            if h is None:
                size = (*last.geometry[3:5], last.shape[1])
                h = self.image(f"{self.layer}.h", x, size, Format.ACTIVATION)
                y = self.image(
                    f"{self.layer}.conv", x, (*h.shape[:2], last.shape[2]), Format.ACTIVATION
                )
                self.normed[y.tensor] = Normed(
                    self.layer, h, cores[3], weights[-1][name], last.geometry, self.chain
                )
                self.continued(self.chain, h)
            self.window = start, steps
            part = h.part(start, steps)
            inner = self._forward(x.part(start, steps), links[:-1], weights[:-1], part)
            self._saved[key, start] = [*inner, part]
        return y

    def continued(self, chain: int, like: Image) -> None:
        """A chain that has all timesteps, and goes on in the nest that makes its operand."""
        self.graph.gradients[chain] = like
        self.graph.whole.add(chain)
        self.graph.joined.add(chain)

    def _sums_of_core(self, chain: Normed, c: int, n: int) -> tuple[Box, ...]:
        """Σ y and Σ y², from the last intermediate."""
        h, r = chain.h, chain.h.shape[2]
        outer, self.layer = self.layer, chain.layer
        cov = chain.cov = self.temp(f"{self.layer}.cov", (1, 1, r, r), Format.STATISTIC)
        rows = (Rows(cov, 0, 1, 0),)
        window = (0, h.steps)
        self.emit(
            WGrad(
                self.tag("cov"),
                h,
                h,
                point(*h.shape[:2]),
                (1, r, r),
                rows,
                chain=chain.chain,
                window=window,
            )
        )
        total = self.temp(f"{self.layer}.hsum", (1, 1, 1, r), Format.STATISTIC)
        self.emit(Sum(self.tag("bn"), Op.RED, [h], total, 0, int(Reduce.SUM)))
        chain.total, chain.mean = total, self.vector(Vec.MUL, total, 1.0 / n)
        self.chain += 1  # both with one copy of the core
        products = [(total, "sum"), (cov, "cov4")]
        first, square = (
            self.small_conv(Image(t, 0, 1), chain.weight, name, Format.STATISTIC, chain=self.chain)
            for t, name in products
        )
        both = self.product([square, Image(chain.core, 0, 1)], (), Format.STATISTIC)
        squares = self.temp(f"{self.layer}.squares", (1, 1, 1, c), Format.STATISTIC)
        self.emit(Sum(self.tag("bn"), Op.RED, [both], squares, 0, int(Reduce.SUM)))
        self.layer = outer
        return Box(first.tensor), Box(squares)

    def _last_core(self, chain: Normed, y: Image) -> Image:
        outer, self.layer = self.layer, chain.layer
        self.chain += 1
        self.graph.gradients[self.chain] = chain.h
        self.graph.whole.add(self.chain)
        out = self.image(f"{self.layer}.again", y, y.shape, y.tensor.format)
        self.emit(
            Conv(
                self.tag("g4"),
                [(chain.h, chain.weight, chain.geometry, 0)],
                out,
                chain=self.chain,
                window=(0, y.steps),
            )
        )
        self.layer = outer
        return out

    def _core_norm_grads(
        self, chain: Normed, stat: Tensor, dy: Image, n: int
    ) -> tuple[Tensor, Tensor]:
        """Gradients of γ and β; what the chain's backward needs is left in ``chain``."""
        h, (r, c) = chain.h, chain.core.shape[2:]
        assert chain.scale is not None
        assert chain.total is not None
        assert chain.mean is not None
        assert chain.cov is not None
        total = self.temp(f"{self.layer}.bias.grad", (1, 1, 1, c), Format.STATISTIC)
        self.emit(Sum(self.tag("bn"), Op.RED, [dy], total, 0, int(Reduce.SUM)))
        scaled = self.product([dy], (Rows(chain.scale, 0, 1, 0),), Format.GRADIENT)
        outer, self.layer = self.layer, chain.layer
        self.chain += 1
        self.continued(self.chain, dy)
        window = (0, h.steps)
        chain.u = self.image(f"{self.layer}.u", h, h.shape, Format.GRADIENT)
        self.emit(
            Conv(
                self.tag("dg4"),
                [(scaled, chain.weight, chain.geometry, 0)],
                chain.u,
                True,
                chain=self.chain,
                window=window,
            )
        )
        centred = self.image(f"{self.layer}.centred", h, h.shape, Format.ACTIVATION)
        mean = (Rows(chain.mean, 0, 1, 0),)
        self.emit(
            Map(
                self.tag("bn"), Op.VEC, [h], [centred], rows=mean, width=1, flags=int(Vec.SUB),
                chain=self.chain, window=window,
            )
        )  # fmt: skip
        product = self.temp(f"{self.layer}.hdy", (1, 1, r, c), Format.GRADIENT)
        self.emit(
            WGrad(
                self.tag("wg4"),
                centred,
                dy,
                chain.geometry,
                (1, r, c),
                (Rows(product, 0, 1, 0),),
                chain=self.chain,
                window=window,
            )
        )
        both = self.product([Image(product, 0, 1), Image(chain.core, 0, 1)], (), Format.STATISTIC)
        along = self.temp(f"{self.layer}.along", (1, 1, 1, c), Format.STATISTIC)
        self.emit(Sum(self.tag("bn"), Op.RED, [both], along, 0, int(Reduce.SUM)))
        rstd = Box(stat, None, (1, 1))
        gamma = self.vector(Vec.MUL, along, rstd)
        q = self.vector(Vec.MUL, self.vector(Vec.MUL, gamma, rstd), chain.scale)
        q = self.vector(Vec.MUL, q, 1.0 / n)
        offset = self.vector(Vec.MUL, self.vector(Vec.MUL, total, chain.scale), 1.0 / n)
        minus = self.vector(Vec.MUL, Box(stat, None, (0, 1)), -1.0)
        offset = self.vector(Vec.ADD, offset, self.vector(Vec.MUL, q, minus))
        means = self._column(chain.total)
        self._corrections(chain, q, offset)
        self._last_core_grad(chain, product, q, (means, minus))
        self.layer = outer
        return gamma, total

    def _corrections(self, chain: Normed, q: Tensor, offset: Tensor) -> None:
        """M, and Wᵀ of ``offset``: what stays the same for all pixels in dh."""
        weighted = self.product([Image(chain.core, 0, 1)], (Rows(q, 0, 1, 0),), Format.GRADIENT)
        self.chain += 1  # in the nest that weights the core
        self.graph.gradients[self.chain] = weighted
        matrix = self.small_conv(
            weighted, chain.weight, "m", Format.GRADIENT, transpose=True, chain=self.chain
        )
        r = chain.h.shape[2]
        chain.matrix = Weight(
            (1, r, r), (Rows(matrix.tensor, 0, 1, 0),), f"{self.layer}.m", Format.GRADIENT
        )
        chain.offset = self.small_conv(
            Image(offset, 0, 1),
            chain.weight,
            "k",
            Format.STATISTIC,
            transpose=True,
            chain=self.chain,
        ).tensor

    def _last_core_grad(
        self, chain: Normed, product: Tensor, q: Tensor, outer: tuple[Image, Tensor]
    ) -> None:
        """dW, in the nest that makes M: the core is read once for all of it.

        ``outer``: Σh, and -ȳ.
        """
        assert chain.cov is not None
        assert chain.scale is not None
        rows = (Rows(chain.scale, 0, 1, 0),)
        scaled = self.product([Image(product, 0, 1)], rows, Format.GRADIENT, chain=self.chain)
        column, minus = outer
        mean = Weight((1, 1, minus.shape[3]), (Rows(minus, 0, 1, 0),), minus.name, minus.format)
        square = self.small_conv(
            Image(chain.cov, 0, 1),
            chain.weight,
            "cov4",
            Format.STATISTIC,
            chain=self.chain,
            more=[(column, mean)],
        )
        rows = (Rows(q, 0, 1, 0),)
        spread = self.product([square], rows, Format.GRADIENT, chain=self.chain)
        chain.grad = self.temp(f"{chain.core.name}.grad", chain.core.shape, Format.GRADIENT)
        self.emit(
            Map(
                self.tag("wg4"),
                Op.VEC,
                [scaled, spread],
                [Image(chain.grad, 0, 1)],
                flags=int(Vec.SUB),
                chain=self.chain,
            )
        )

    def gradient_at_last(self, chain: Normed) -> Image:
        """dh, at the beginning of a chain of its own."""
        assert chain.u is not None
        assert chain.matrix is not None
        assert chain.offset is not None
        h, u = chain.h, chain.u
        self.chain += 1
        self.graph.gradients[self.chain] = u
        self.graph.whole.add(self.chain)
        window = (0, h.steps)
        moved = self.image(f"{self.layer}.mh", h, h.shape, Format.GRADIENT)
        terms = [(h, chain.matrix, point(*h.shape[:2]), 0)]
        self.emit(Conv(self.tag("dnorm"), terms, moved, chain=self.chain, window=window))
        rest = self.image(f"{self.layer}.rest", h, h.shape, Format.GRADIENT)
        self.emit(Map(self.tag("dnorm"), Op.VEC, [u, moved], [rest], flags=int(Vec.SUB)))
        dh = self.image(f"{self.layer}.dh", h, h.shape, Format.GRADIENT)
        rows = (Rows(chain.offset, 0, 1, 0),)
        self.emit(
            Map(self.tag("dnorm"), Op.VEC, [rest], [dh], rows=rows, width=1, flags=int(Vec.SUB))
        )
        return dh

    # -- small helpers --

    def vector(self, kind: Vec, a: Tensor | Box, b: Tensor | Box | float) -> Tensor:
        """One operation on a value for each channel."""
        first = a if isinstance(a, Box) else Box(a)
        out = self.temp(f"{self.layer}.row", (1, 1, 1, first.tensor.shape[3]), Format.STATISTIC)
        srcs: list[tuple[Box, ...]] = [(first,)]
        if not isinstance(b, float):
            srcs.append((b if isinstance(b, Box) else Box(b),))
        scalars = (b,) if isinstance(b, float) else ()
        self.emit(Small(self.tag("bn"), Op.VEC, Box(out), srcs, scalars=scalars, flags=int(kind)))
        return out

    def product(
        self, ins: list[Image], rows: tuple[Rows, ...], fmt: Format, chain: int = -1
    ) -> Image:
        """Elementwise product of images, or of an image with a row."""
        first = ins[0]
        images = self.N if first.tensor.shape[0] > 1 or first.repeat else 1
        shape = (first.steps * images, *first.shape)
        out = Image(self.temp(f"{self.layer}.product", shape, fmt), 0, first.steps)
        kind = int(Vec.MUL)
        self.emit(
            Map(self.tag("bn"), Op.VEC, ins, [out], rows=rows, width=1, flags=kind, chain=chain)
        )
        return out

    def small_conv(
        self,
        x: Image,
        weight: Weight,
        name: str,
        fmt: Format,
        transpose: bool = False,
        chain: int = -1,
        more: Sequence[tuple[Image, Weight]] = (),
    ) -> Image:
        """Product of a small matrix and a core, and further products that are added to it."""
        c = weight.shape[1 if transpose else 2]
        y = Image(self.temp(f"{self.layer}.{name}", (1, *x.shape[:2], c), fmt), 0, 1)
        terms = [(a, w, point(*x.shape[:2]), 0) for a, w in ((x, weight), *more)]
        self.emit(Conv(self.tag("bn"), terms, y, transpose, chain=chain))
        return y

    def _column(self, row: Tensor) -> Image:
        """A row of channels as pixels of one channel: its outer product with 1."""
        r = row.shape[3]
        if self._one is None:
            zero = self.vector(Vec.MUL, row, 0.0)
            ones = self.vector(Vec.ADD, zero, 1.0)
            self._one = self.temp("one", (1, 1, 1, 1), Format.STATISTIC)
            self.emit(
                Small(self.tag("bn"), Op.RED, Box(self._one), [(Box(ones),)], flags=int(Reduce.MAX))
            )
        column = self.temp(f"{self.layer}.column", (1, 1, r, 1), Format.STATISTIC)
        rows = (Rows(column, 0, 1, 0),)
        pair = Image(row, 0, 1), Image(self._one, 0, 1)
        self.emit(WGrad(self.tag("bn"), *pair, point(1, 1), (1, r, 1), rows))
        return Image(column, 0, 1)
