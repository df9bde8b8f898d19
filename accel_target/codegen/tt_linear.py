"""Tensor-train linear layers: part of the importer."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.contractions import TTImport
from ttsnn.accel_target.codegen.graph import Image, Map, Tensor
from ttsnn.accel_target.codegen.trains import LinearTrain
from ttsnn.accel_target.isa import Format, Op, Pool

__all__ = ["TTLinearImport"]


class TTLinearImport(TTImport):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._flat: dict[Image, Image] = {}

    def _tt_linear(self, call: relax.Call) -> Image:
        x, *cores = map(self.get, call.args)
        self.layer = self.layer_of.get(cores[0], self.layer)
        self._lay_out(cores)
        return self.tt_forward(self._flattened(x), cores, LinearTrain(self.layer), call.args[0])

    def _tt_linear_backward(self, call: relax.Call) -> Any:
        x, *cores, dy = map(self.get, call.args)
        self.layer = self.layer_of.get(cores[0], self.layer)
        flat = self._flattened(x)
        dx, *grads = self.tt_backward(flat, cores, dy, LinearTrain(self.layer), call.args[0])
        return self._unflattened(dx, x), *grads

    def _lay_out(self, cores: list[Tensor]) -> None:
        """Cores [r, m, n, r'], and what is kept for each, come as [n, r, m r']: n taps."""
        for core in cores:
            for t in self.graph.inputs:
                if t is core or t.name.startswith(f"{core.name}."):
                    r, m, n, after = t.host_shape
                    t.shape, t.host_axes = (1, n, r, m * after), (2, 0, 1, 3)
                    t.format = Format.WEIGHT if t is core else Format.GRADIENT

    def _flattened(self, x: Image) -> Image:
        """An image's features in the network's order: [channels, height, width]."""
        if x.shape[:2] == (1, 1):
            return x
        if x not in self._flat:
            name = f"{x.tensor.name}.flat"
            y = self.image(name, x, (1, x.shape[2], prod(x.shape[:2])), x.tensor.format)
            self.emit(self._reorder(Op.POOL, x, y))
            self._flat[x] = y
        return self._flat[x]

    def _unflattened(self, flat: Image, like: Image) -> Image:
        """The opposite, of a gradient."""
        if like.shape[:2] == (1, 1):
            return flat
        y = self.image(f"{self.layer}.dimage", like, like.shape, Format.GRADIENT)
        self.emit(self._reorder(Op.POOLB, flat, y))
        return y

    def _reorder(self, op: Op, x: Image, y: Image) -> Map:
        h, w, _ = (y if op == Op.POOLB else x).shape
        taps = tuple((i, j) for i in range(h) for j in range(w))
        return Map(
            self.tag("flatten"),
            op,
            [x],
            [y],
            "gradient" if op == Op.POOLB else "vector",
            flags=int(Pool.FLAT),
            geometry=(h, w, taps, h, w, 1, 1),
            transpose=op == Op.POOLB,
        )
