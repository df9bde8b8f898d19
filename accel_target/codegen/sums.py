"""Sums over timesteps, images, pixels and channels: part of the importer."""

from __future__ import annotations

from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.axes import is_timed, shape_of, text_of
from ttsnn.accel_target.codegen.graph import Box, Image, Map, Small, Sum, Tensor
from ttsnn.accel_target.codegen.importing import Importing, Value
from ttsnn.accel_target.isa import Format, Op, Reduce, Vec
from ttsnn.errors import TargetError

__all__ = ["SumImport"]


class SumImport(Importing):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def _sum(self, call: relax.Call) -> Value:
        x, shape = self.get(call.args[0]), shape_of(call)
        given = shape_of(call.args[0])
        if not isinstance(x, Image):
            if not shape:
                return self._small(Op.RED, (1, 1, 1, 1), [x], Reduce.SUM)
        elif shape == given:
            return x
        elif is_timed(len(given)) and shape in (given[1:], [1, *given[1:]]):
            return self.over_time(x, "sum")
        elif not shape and x.shape[:2] == (1, 1):
            return self._times(self._small(Op.RED, (1, 1, 1, 1), [x.tensor], Reduce.SUM), x)
        elif shape == [*given[:-1], 1] and len(given) < 4:
            t = x.tensor
            rows = self._small(Op.RED, (*t.shape[:3], 1), [t], Reduce.SUM)
            return Image(rows, 0, x.steps, repeat=x.repeat)
        elif [s for s in shape if s > 1] == [c for c in x.shape[2:] if c > 1]:
            return self._sum_of_frames(x)
        raise TargetError(
            f"target ttsnn-accel: sum of {text_of(call.args[0])} to {tuple(shape)} after layer "
            f"{self.layer!r}; compile for cpu"
        )

    _collapse_sum_to = _collapse_sum_like = _sum

    def _sum_of_frames(self, x: Image) -> Tensor:
        """Over timesteps, images and pixels."""
        c = x.shape[2]
        if x.shape[:2] == (1, 1):
            return self._times(self._small(Op.RED, (1, 1, 1, c), [x.tensor], Reduce.SUM), x)
        total = self.temp(f"{self.layer}.total", (1, 1, 1, c), Format.STATISTIC)
        source = x.once() if x.repeat else x
        self.emit(Sum(self.tag("sum"), Op.RED, [source], total, 0, int(Reduce.SUM)))
        return self._times(total, x)

    def _times(self, total: Tensor, x: Image) -> Tensor:
        """A sum over an image that stands for several timesteps."""
        return self._scaled(total, float(x.steps)) if x.repeat else total

    def over_time(self, x: Image, role: str, scale: float = 1.0) -> Image:
        """The sum of all timesteps times ``scale``, row by row of each image."""
        if x.repeat:
            x, scale = x.once(), scale * x.steps
        total = x.tensor
        h, pixel = x.shape[0], x.shape[:2] == (1, 1)
        if x.steps > 1:
            fmt = Format.STATISTIC if pixel else self._wide()
            total = self.temp(f"{self.layer}.time_sum", (self.N, *x.shape), fmt)
            for n in range(self.N):
                frames = (x.step * self.N + n, x.steps, self.N)
                for row in range(h):
                    self.emit(
                        Small(
                            self.tag(role),
                            Op.RED,
                            Box(total, (n, 1, 1), (row, 1)),
                            [(Box(x.tensor, frames, (row, 1)),)],
                            flags=int(Reduce.SUM),
                        )
                    )
            x = Image(total, 0, 1)
        if scale == 1.0:
            return x
        if pixel and total.shape[0] == self.N:
            return Image(self._scaled(total, scale, role), 0, 1)
        y = self.image(f"{self.layer}.scaled", x, x.shape, self._wide())
        flags = int(Vec.MUL)
        self.emit(Map(self.tag(role), Op.VEC, [x], [y], scalars=(scale,), flags=flags))
        return y

    def _wide(self) -> Format:
        return Format.ACCUMULATOR if self.phase == "forward" else Format.GRADIENT

    def _scaled(self, t: Tensor, by: float, role: str = "sum") -> Tensor:
        out = self.temp(f"{t.name}.scaled", t.shape, Format.STATISTIC)
        srcs: list[Any] = [(Box(t),)]
        flags = int(Vec.MUL)
        self.emit(Small(self.tag(role), Op.VEC, Box(out), srcs, scalars=(by,), flags=flags))
        return out

    def _small(self, op: Op, shape, operands: list[Tensor], kind: int) -> Tensor:
        out = self.temp("loss", tuple(shape), Format.STATISTIC)
        self.emit(
            Small(self.tag("loss"), op, Box(out), [(Box(t),) for t in operands], flags=int(kind))
        )
        return out
