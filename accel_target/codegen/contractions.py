"""Tensor trains as nodes: one for each core, forward and backward."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.graph import (
    Conv,
    Image,
    Map,
    Rows,
    Tensor,
    Weight,
    WGrad,
)
from ttsnn.accel_target.codegen.importing import Importing
from ttsnn.accel_target.codegen.trains import Core, Link, Train
from ttsnn.accel_target.isa import Format, Op, Vec

__all__ = ["TTImport"]


class TTImport(Importing):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.window: tuple[int, int] | None = None
        self.parts: dict[Tensor, list[tuple[int, int]]] = {}
        self.trains: dict[Tensor, tuple] = {}
        self._saved: dict[tuple[relax.Expr, int], list[Image]] = {}
        self._again: dict[tuple[relax.Expr, int], list[Image]] = {}

    def _chain(self, train: Train, cores: list[Tensor], x: Image, kind: str) -> list[Link]:
        return train.links([c.host_shape for c in cores], x.shape[:2], kind)

    def _weight_of(self, name: str, core: Core, cores: list[Tensor]) -> Weight:
        seen: set[int] = set()
        rows = []
        for k, row, count, at in core.rows:
            held = set(range(at, at + count))
            rows.append(Rows(cores[k], row, count, at, add=bool(held & seen)))
            seen |= held
        return Weight(core.shape, tuple(rows), f"{self.layer}.{name}")

    def _weights(self, link: Link, cores: list[Tensor]) -> dict[str, Weight]:
        return {name: self._weight_of(name, core, cores) for name, core in link.items()}

    def tt_forward(self, x: Image, cores: list[Tensor], train: Train, key: relax.Expr) -> Image:
        """Nodes of a chain; returns its result."""
        y: Image | None = None
        for start, steps, kind in train.parts(x.steps):
            links = self._chain(train, cores, x, kind)
            weights = [self._weights(link, cores) for link in links]
            if y is None:
                y = self.image(f"{self.layer}.conv", x, train.result(links), Format.ACTIVATION)
            part = x.part(start, steps)
            self.window = start, steps
            whole = self.inference and self.variant().whole
            if not whole or not start:
                self.chain += 1
            if whole:  # the neuron behind it, which needs all timesteps, is in its nest
                self.graph.gradients[self.chain] = y
                self.graph.whole.add(self.chain)
            inner = self._forward(part, links, weights, y.part(start, steps))
            self._saved[key, start] = inner
        assert y is not None
        self.parts[y.tensor] = [(start, steps) for start, steps, _ in train.parts(x.steps)]
        self.trains[y.tensor] = self.layer, x, cores, train, key
        return y

    def _next_core(self, another: bool) -> None:
        """Without fusion every core is a chain of its own."""
        if another and not self.variant().fused:
            self.chain += 1

    def _forward(
        self, x: Image, links: list[Link], weights: list[dict[str, Weight]], y: Image | None
    ) -> list[Image]:
        """Emit the links; to y, or without the last where there is none. Returns inputs of each."""
        inputs = [x]
        for k, (link, weight) in enumerate(zip(links, weights)):
            if k == len(links) - 1 and y is None:
                break
            first = next(iter(link.values()))
            shape = (*first.geometry[5:7], first.shape[2])
            out = (
                y
                if k == len(links) - 1
                else self.image(f"{self.layer}.h{k + 1}", x, shape, Format.ACTIVATION)
            )
            assert out is not None
            source = inputs[-1]
            self._next_core(k > 0)
            terms = [
                (source, weight[n], c.geometry, c.flags | self._binary(source))
                for n, c in link.items()
            ]
            role = "cross" if len(link) > 1 else next(iter(link))
            self.emit(Conv(self.tag(role), terms, out, chain=self.chain, window=self.window))
            inputs.append(out)
        return inputs[: len(links)]

    def output_again(self, y: Image, dy: Image | None) -> Image:
        """The result of a chain, computed again where its variant says so.

        Args:
            y: the result.
            dy: its gradient, which is about to be computed from it; None in the forward.
        """
        if y.tensor not in self.trains:
            return y
        outer = self.layer
        self.layer, x, cores, train, key = self.trains[y.tensor]
        v = self.variant()
        if v.again if dy is None else v.output:
            self.chain += 1
            self.graph.gradients[self.chain] = dy or y
            self.graph.whole.add(self.chain)
            again = self.image(f"{self.layer}.again", y, y.shape, y.tensor.format)
            for start, steps, kind in train.parts(x.steps):
                links = self._chain(train, cores, x, kind)
                weights = [self._weights(link, cores) for link in links]
                self.window = start, steps
                inputs = self._forward(
                    x.part(start, steps), links, weights, again.part(start, steps)
                )
                if dy is not None:
                    self._again[key, start] = inputs
            y = again
        self.layer = outer
        return y

    def tt_backward(
        self,
        x: Image,
        cores: list[Tensor],
        dy: Image,
        train: Train,
        key: relax.Expr,
        last: Tensor | None = None,
    ) -> tuple:
        """Nodes of ``tt.conv2d_backward``; returns (dx, dg1, dg2, dg3, dg4).

        ``last``: gradient of the last core; ``dy`` is then that of its operand, and the chain
        that is being emitted makes it.
        """
        dx = self.image(f"{self.layer}.dx", x, x.shape, Format.GRADIENT)
        grads = [self.temp(f"{c.name}.grad", c.shape, Format.GRADIENT) for c in cores]
        written: set[int] = set()
        if last is not None:
            grads[3] = last
            written.add(3)
        for start, steps, kind in train.parts(x.steps):
            links = self._chain(train, cores, x, kind)[: -1 if last is not None else None]
            weights = [self._weights(link, cores) for link in links]
            self.window = start, steps
            inputs = self._again.get((key, start))
            if inputs is None and last is None and (not self.variant().whole or not start):
                self.chain += 1
            self.graph.gradients.setdefault(
                self.chain, dy if self.variant().whole else dy.part(start, steps)
            )
            if self.variant().whole:
                self.graph.whole.add(self.chain)
            if inputs is None:
                inputs = self._saved[key, start]
            if self.variant().recompute and (key, start) not in self._again:
                inputs = self._forward(x.part(start, steps), links, weights, None)
            d = dy.part(start, steps)
            for k in range(len(links) - 1, -1, -1):
                self._next_core(k < len(links) - 1)
                self.graph.gradients.setdefault(self.chain, d)
                self._core_grads(links[k], inputs[k], d, grads, written)
                first = next(iter(links[k].values()))
                role = "d" + ("cross" if len(links[k]) > 1 else next(iter(links[k])))
                target = (
                    dx.part(start, steps)
                    if k == 0
                    else self.image(
                        f"{self.layer}.dh{k}",
                        inputs[k],
                        (*first.geometry[3:5], first.shape[1]),
                        Format.GRADIENT,
                    )
                )
                terms = [(d, weights[k][n], c.geometry, c.flags) for n, c in links[k].items()]
                self.emit(
                    Conv(self.tag(role), terms, target, True, chain=self.chain, window=self.window)
                )
                d = target
        for k, (core, grad) in enumerate(zip(cores, grads)):
            if k not in written:  # htt without a full timestep
                self.emit(
                    Map(
                        self.tag("zero"),
                        Op.VEC,
                        [Image(core, 0, 1)],
                        [Image(grad, 0, 1)],
                        scalars=(0.0,),
                        flags=int(Vec.MUL),
                    )
                )
        return dx, *grads

    def _core_grads(
        self, link: Link, x: Image, dy: Image, grads: list[Tensor], written: set[int]
    ) -> None:
        for name, core in link.items():
            rows = tuple(Rows(grads[k], row, count, at) for k, row, count, at in core.rows)
            more = any(k in written for k, *_ in core.rows)
            self.emit(
                WGrad(
                    self.tag(f"w{name}"),
                    x,
                    dy,
                    core.geometry,
                    core.shape,
                    rows,
                    core.flags | self._binary(x),
                    more,
                    chain=self.chain,
                    window=self.window,
                )
            )
        written |= {k for core in link.values() for k, *_ in core.rows}
