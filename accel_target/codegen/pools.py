"""Pools, means and their gradients: part of the importer."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.axes import shape_of, text_of
from ttsnn.accel_target.codegen.graph import Box, Image, Map, Small, Tensor
from ttsnn.accel_target.codegen.importing import Importing
from ttsnn.accel_target.isa import Format, Op, Pool, Reduce, Vec
from ttsnn.errors import TargetError

__all__ = ["PoolImport"]


class PoolImport(Importing):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def _nn_max_pool2d(self, call: relax.Call, kind: Pool = Pool.MAX) -> Image:
        x, g = self.get(call.args[0]), self._window(call, call.args[0])
        spikes = kind == Pool.MAX and self._binary(x)  # a maximum of spikes is one
        name = f"{x.tensor.name}.pool" if spikes else f"{self.layer}.pool"
        y = self.image(name, x, (g[5], g[6], x.shape[2]), x.tensor.format)
        if kind == Pool.MEAN:
            y.tensor.format = Format.ACTIVATION
        self.emit(Map(self.tag("pool"), Op.POOL, [x], [y], flags=int(kind), geometry=g))
        return y

    def _nn_avg_pool2d(self, call: relax.Call) -> Image:
        return self._nn_max_pool2d(call, Pool.MEAN)

    def _window(self, call: relax.Call, x: relax.Expr) -> Any:
        a, (h, w) = call.attrs, shape_of(x)[-2:]
        (kh, kw), (sh, sw) = map(int, a.pool_size), map(int, a.strides)
        top, left, bottom, right = map(int, a.padding)
        dh, dw = map(int, a.dilation)
        taps = tuple((i * dh - top, j * dw - left) for i in range(kh) for j in range(kw))
        oh = (h + top + bottom - dh * (kh - 1) - 1) // sh + 1
        ow = (w + left + right - dw * (kw - 1) - 1) // sw + 1
        return sh, sw, taps, h, w, oh, ow

    def _grad_max_pool2d_backward(self, call: relax.Call, kind: Pool = Pool.MAX) -> Image:
        dy, x = self.get(call.args[0]), self.get(call.args[1])
        g = self._window(call, call.args[1])
        dx = self.image(f"{self.layer}.dpool", x, x.shape, Format.GRADIENT)
        ins = [dy, x] if kind == Pool.MAX else [dy]
        if kind == Pool.MAX and (g[0] < 1 or max(t[0] for t in g[2]) >= g[0]):
            raise TargetError(
                f"target ttsnn-accel: the gradient of a maximum over overlapping windows after "
                f"layer {self.layer!r}; compile for cpu"
            )
        self.emit(
            Map(
                self.tag("pool"),
                Op.POOLB,
                ins,
                [dx],
                "gradient",
                flags=int(kind),
                geometry=g,
                transpose=True,
            )
        )
        return dx

    def _grad_avg_pool2d_backward(self, call: relax.Call) -> Image:
        return self._grad_max_pool2d_backward(call, Pool.MEAN)

    def _mean(self, call: relax.Call) -> Image:
        x, axes = self.get(call.args[0]), sorted(int(a) for a in call.attrs.axis)
        rank = len(shape_of(call.args[0]))
        if axes == [rank - 2, rank - 1] and rank >= 4:
            h, w, c = x.shape
            taps = tuple((i, j) for i in range(h) for j in range(w))
            y = self.image(f"{self.layer}.mean", x, (1, 1, c), Format.ACTIVATION)
            self.emit(
                Map(
                    self.tag("pool"),
                    Op.POOL,
                    [x],
                    [y],
                    flags=int(Pool.MEAN),
                    geometry=(h, w, taps, h, w, 1, 1),
                )
            )
            return y
        if axes == [0] and x.shape[:2] == (1, 1):
            total: Tensor = self.temp("time_sum", (self.N, 1, 1, x.shape[2]), Format.STATISTIC)
            for n in range(self.N):
                self.emit(
                    Small(
                        self.tag("mean"),
                        Op.RED,
                        Box(total, (n, 1, 1)),
                        [(Box(x.tensor, (n, x.steps, self.N)),)],
                        flags=int(Reduce.SUM),
                    )
                )
            mean = self.temp("time_mean", total.shape, Format.STATISTIC)
            self.emit(
                Small(
                    self.tag("mean"),
                    Op.VEC,
                    Box(mean),
                    [(Box(total),)],
                    scalars=(1.0 / x.steps,),
                    flags=int(Vec.MUL),
                )
            )
            return Image(mean, 0, 1)
        raise TargetError(f"target ttsnn-accel: mean of {text_of(call.args[0])} over {axes}")
