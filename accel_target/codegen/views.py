"""Operators that move nothing, or spread a value: part of the importer."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import relax

from ttsnn.accel_target.codegen.axes import frames_of, shape_of, text_of
from ttsnn.accel_target.codegen.graph import Box, Image, Map, Small, Tensor
from ttsnn.accel_target.codegen.importing import Importing, Value
from ttsnn.accel_target.isa import Format, Op, Pool, Vec
from ttsnn.errors import TargetError

__all__ = ["ViewImport"]


class ViewImport(Importing):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def _reshape(self, call: relax.Call) -> Value:
        x, shape = self.get(call.args[0]), shape_of(call)
        if isinstance(x, Tensor):
            if prod(shape) == prod(x.shape):
                return x
        elif isinstance(x, Image):
            if len(shape) >= 4 and tuple(shape[-3:]) == (x.shape[2], *x.shape[:2]):
                return x
            if len(shape) in (2, 3) and x.shape[:2] == (1, 1) and shape[-1] == x.shape[2]:
                return x
            if x.tensor.role == "input" and not self.graph.nodes:
                # nothing has read it yet: it may come to DRAM in the order of its new shape
                x.tensor.shape = (x.tensor.shape[0], *frames_of(shape)[1:])
                x.tensor.host_axes = tuple(range(len(x.tensor.host_shape)))
                return x
            if len(shape) in (2, 3) and shape[-1] == prod(x.shape):
                return x  # flattened: the matrix that reads it is one tap a pixel
        raise TargetError(
            f"target ttsnn-accel: reshape of {text_of(call.args[0])} to {tuple(shape)} after layer "
            f"{self.layer!r} is no view on the accelerator"
        )

    _flatten = _squeeze = _reshape

    def _zeros(self, call: relax.Call) -> Any:
        return 0.0

    def _ones(self, call: relax.Call) -> Any:
        return 1.0

    _zeros_like = _zeros
    _ones_like = _ones

    def _expand_dims(self, call: relax.Call) -> Value | float:
        x = self.get(call.args[0])
        if isinstance(x, Image | float):
            return x
        return self._reshape(call)

    def _permute_dims(self, call: relax.Call) -> Any:
        x = self.get(call.args[0])
        if [int(a) for a in call.attrs.axes or (1, 0)] == [1, 0]:
            return ("transposed", x)
        raise TargetError(f"target ttsnn-accel: permutation of {text_of(call.args[0])}")

    def _broadcast_to(self, call: relax.Call) -> Value | float:
        x, shape = self.get(call.args[0]), shape_of(call)
        if isinstance(x, float):
            return x
        if isinstance(x, Tensor):
            out = Image(
                self.temp("broadcast", frames_of(shape), x.format), 0, frames_of(shape)[0] // self.N
            )
            self.emit(
                Small(self.tag("loss"), Op.VEC, Box(out.tensor), [(Box(x),)], flags=int(Vec.COPY))
            )
            return out
        f, h, w, _ = frames_of(shape)
        if (h, w) != x.shape[:2]:
            return self._spread(x, h, w, f)
        if f > x.steps * self.N and x.steps == 1:
            return Image(x.tensor, x.step, f // self.N, repeat=True)
        if f == x.steps * self.N:
            return x
        raise TargetError(f"target ttsnn-accel: broadcast of {text_of(call.args[0])} to {shape}")

    def _spread(self, x: Image, h: int, w: int, f: int) -> Image:
        """A mean's gradient to all pixels."""
        source = x.once() if x.repeat else x
        taps = tuple((i, j) for i in range(h) for j in range(w))
        y = self.image("spread", source, (h, w, x.shape[2]), Format.GRADIENT)
        self.emit(
            Map(
                self.tag("spread"),
                Op.POOLB,
                [source],
                [y],
                "gradient",
                flags=int(Pool.SUM),
                geometry=(h, w, taps, h, w, 1, 1),
                transpose=True,
            )
        )
        again = x.repeat or f > x.steps * self.N  # over time too
        return Image(y.tensor, 0, f // self.N, repeat=True) if again else y
