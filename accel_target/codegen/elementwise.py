"""Elementwise operators, of images and of parameters, and the loss: part of the importer."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from tvm import relax

from ttsnn.accel_target.codegen.axes import shape_of, text_of
from ttsnn.accel_target.codegen.graph import Box, Image, Map, Rows, Small, Tensor
from ttsnn.accel_target.codegen.sums import SumImport
from ttsnn.accel_target.isa import Format, Op, Reduce, Vec
from ttsnn.errors import TargetError
from ttsnn.passes.static_values import op_name

__all__ = ["ElementwiseImport"]

BINARY = {
    "add": Vec.ADD,
    "subtract": Vec.SUB,
    "multiply": Vec.MUL,
    "divide": Vec.DIV,
    "maximum": Vec.MAX,
    "minimum": Vec.MIN,
    "power": Vec.POW,
}
UNARY = {
    "negative": Vec.NEG,
    "exp": Vec.EXP,
    "log": Vec.LOG,
    "sqrt": Vec.SQRT,
    "abs": Vec.ABS,
    "astype": Vec.COPY,
}


class ElementwiseImport(SumImport):
    """Part of the importer; see :class:`ttsnn.accel_target.codegen.importer._Importer`."""

    def _elementwise(self, call: relax.Call) -> Any:
        name = op_name(call).removeprefix("relax.")
        values = [self.get(a) for a in call.args[: 2 if name in BINARY else 1]]
        if all(isinstance(v, float) for v in values):
            return float(getattr(np, name)(*values)) if name != "astype" else values[0]
        images = [v for v in values if isinstance(v, Image)]
        tensors = [v for v in values if isinstance(v, Tensor)]
        if not images:
            return self._on_params(call, name, values, tensors)
        kind = (BINARY | UNARY)[name]
        repeat = all(i.repeat for i in images)
        if repeat:
            values = [v.once() if isinstance(v, Image) else v for v in values]
        first = max(
            (v for v in values if isinstance(v, Image)), key=lambda i: i.steps * prod(i.shape)
        )
        fmt = Format.GRADIENT if self.phase != "forward" else Format.ACTIVATION
        if first.shape[:2] == (1, 1) and self.phase == "head":
            fmt = Format.STATISTIC
        y = self.image(f"{self.layer}.{name}", first, first.shape, fmt)
        self.layer_of[y.tensor] = self.layer
        values, kind, scalars = _order(values, kind)
        ins = [v for v in values if isinstance(v, Image)]
        rows = tuple(Rows(v, 0, 1, 0) for v in values if isinstance(v, Tensor))
        if len(ins) == 2 and ins[0].shape != ins[1].shape:
            if any(v.shape[:2] != (1, 1) or v.repeat for v in ins):
                raise TargetError(
                    f"target ttsnn-accel: {name} of {text_of(call.args[0])} and "
                    f"{text_of(call.args[1])} after layer {self.layer!r}"
                )
            y.tensor.format = Format.STATISTIC
            boxes: list[tuple[Box, ...]] = [(Box(v.tensor),) for v in ins]
            self.emit(Small(self.tag(name), Op.VEC, Box(y.tensor), boxes, flags=int(kind)))
            return y
        self.emit(
            Map(
                self.tag(name),
                Op.VEC,
                ins,
                [y],
                rows=rows,
                width=1,
                scalars=scalars,
                flags=int(kind),
            )
        )
        steps = next(i.steps for i in images)
        return Image(y.tensor, 0, steps, repeat=True) if repeat else y

    def _on_params(
        self, call: relax.Call, name: str, values: list, tensors: list[Tensor]
    ) -> Tensor:
        wide = max(tensors, key=lambda t: prod(t.shape))
        if prod(wide.shape) > 1:
            self.layer = next((self.layer_of[t] for t in tensors if t in self.layer_of), self.layer)
        # weights are narrow, but not what is added to them
        fmt = max((t.format for t in tensors if t.shape == wide.shape), key=int)
        if self.phase == "update" and fmt == Format.WEIGHT:
            fmt = Format.GRADIENT
        out = self.temp(f"{wide.name}.{name}", wide.shape, fmt)
        self.layer_of[out] = self.layer
        kind = (BINARY | UNARY)[name]
        values, kind, scalars = _order(values, kind)
        big = [v for v in values if isinstance(v, Tensor) and v.shape == wide.shape]
        rows = tuple(Rows(v, 0, 1, 0) for v in values if isinstance(v, Tensor) and v not in big)
        unit = "optimizer" if self.phase == "update" else "vector"
        self.emit(
            Map(
                self.tag("update" if self.phase == "update" else name),
                Op.VEC,
                [Image(v, 0, 1) for v in big],
                [Image(out, 0, 1)],
                unit,
                rows,
                1,
                scalars,
                int(kind),
            )
        )
        return out

    def _one_hot(self, call: relax.Call) -> Image:
        labels, depth = self.get(call.args[0]), shape_of(call)[-1]
        shape = (labels.tensor.shape[0], 1, 1, depth)
        index = self.temp("class_index", shape, Format.STATISTIC)
        self.emit(
            Small(
                self.tag("loss"), Op.VEC, Box(index), [(Box(labels.tensor),)], flags=int(Vec.INDEX)
            )
        )
        return Image(self._small(Op.VEC, shape, [index, labels.tensor], Vec.EQUAL), 0, 1)

    def _nn_log_softmax(self, call: relax.Call) -> Image:
        image = self.get(call.args[0])
        x, shape = image.tensor, image.tensor.shape
        narrow = (*shape[:3], 1)
        top = self._small(Op.RED, narrow, [x], Reduce.MAX)
        moved = self._small(Op.VEC, shape, [x, top], Vec.SUB)
        total = self._small(
            Op.RED, narrow, [self._small(Op.VEC, shape, [moved], Vec.EXP)], Reduce.SUM
        )
        log = self._small(Op.VEC, narrow, [total], Vec.LOG)
        return Image(self._small(Op.VEC, shape, [moved, log], Vec.SUB), 0, image.steps)


def _order(values: list, kind: Vec) -> tuple[list, Vec, tuple[float, ...]]:
    """Operands with the widest first, and a number as a scalar."""
    swapped = {Vec.SUB: Vec.RSUB, Vec.DIV: Vec.RDIV}

    def size(v) -> int:
        if isinstance(v, float):
            return -1
        return v.steps * prod(v.tensor.shape[1:]) if isinstance(v, Image) else prod(v.shape)

    if len(values) == 2 and size(values[1]) > size(values[0]):
        values, kind = values[::-1], swapped.get(kind, kind)
    scalars = tuple(v for v in values if isinstance(v, float))
    return [v for v in values if not isinstance(v, float)], kind, scalars
