"""Pools, means and their gradients: part of the importer."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.axes import is_timed, shape_of, text_of
from ttsnn.accel_target.codegen.graph import Image, Map
from ttsnn.accel_target.codegen.sums import SumImport
from ttsnn.accel_target.isa import Format, Op, Pool
from ttsnn.errors import TargetError

__all__ = ["PoolImport"]


class PoolImport(SumImport):
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
        x, axes = self.get(call.args[0]), {int(a) for a in call.attrs.axis}
        rank = len(shape_of(call.args[0]))
        space, time = {rank - 2, rank - 1}, {0}
        if rank >= 4 and axes in (space, space | time):
            x = self._mean_of_pixels(x)
            axes -= space
        if not axes:
            return x
        if axes == time and is_timed(rank):
            return self.over_time(x, "mean", 1.0 / x.steps)
        raise TargetError(
            f"target ttsnn-accel: mean of {text_of(call.args[0])} over {sorted(axes)} after layer "
            f"{self.layer!r}; compile for cpu"
        )

    def _mean_of_pixels(self, x: Image) -> Image:
        h, w, c = x.shape
        source = x.once() if x.repeat else x
        taps = tuple((i, j) for i in range(h) for j in range(w))
        y = self.image(f"{self.layer}.mean", source, (1, 1, c), Format.ACTIVATION)
        self.emit(
            Map(
                self.tag("pool"),
                Op.POOL,
                [source],
                [y],
                flags=int(Pool.MEAN),
                geometry=(h, w, taps, h, w, 1, 1),
            )
        )
        return Image(y.tensor, 0, x.steps, repeat=True) if x.repeat else y
