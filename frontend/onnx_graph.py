"""Building blocks of ONNX graphs and functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ttsnn.errors import ModelImportError

__all__ = ["DOMAIN", "IR_VERSION", "OPSET", "GraphBuilder", "require_onnx", "tensor_type"]

DOMAIN = "ttsnn"
OPSET = 20
IR_VERSION = 10


def require_onnx() -> Any:
    """The ``onnx`` package; raises :class:`ModelImportError` where it is not installed."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError:
        raise ModelImportError(
            "ONNX files need the package onnx; install it with: pip install 'ttsnn[onnx]'"
        ) from None
    return onnx


def tensor_type(dtype: str) -> int:
    """ONNX's number of a dtype."""
    onnx = require_onnx()
    return int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


class GraphBuilder:
    """Collects nodes; each method returns names of values.

    Args:
        dtype: ``"float32"`` or ``"float64"``. ONNX Runtime has no float64 convolution or average
            pool, so these are written as patches and one matrix product.
        prefix: of all names made here.
    """

    def __init__(self, dtype: str, prefix: str = "") -> None:
        self.onnx = require_onnx()
        self.dtype = dtype
        self.nodes: list[Any] = []
        self._prefix = prefix
        self._used: set[str] = set()

    def name(self, hint: str) -> str:
        """A name not used yet."""
        base = self._prefix + hint
        out, i = base, 0
        while out in self._used:
            i += 1
            out = f"{base}_{i}"
        self._used.add(out)
        return out

    def op(
        self,
        kind: str,
        *inputs: str,
        hint: str = "",
        outputs: int = 1,
        domain: str = "",
        **attrs: Any,
    ) -> Any:
        """Append a node; returns the name of its output (a list where there are several)."""
        names = [self.name(hint or kind.lower()) for _ in range(outputs)]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        node = self.onnx.helper.make_node(
            kind, list(inputs), names, name=self.name(f"node_{names[0]}"), domain=domain, **attrs
        )
        self.nodes.append(node)
        return names[0] if outputs == 1 else names

    def const(self, value: Any, dtype: str | None = None) -> str:
        """A constant; floats take the graph's dtype."""
        array = np.asarray(value, dtype=dtype or self.dtype)
        tensor = self.onnx.numpy_helper.from_array(array)
        return self.op("Constant", hint="const", value=tensor)

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.const(np.asarray(values, np.int64), "int64")

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        """Reshape; 0 copies a size, -1 stands for one unknown size."""
        return self.op("Reshape", x, self.ints(*shape))

    def pad_crop(self, x: str, pads: Sequence[int], rank: int, value: float | None = None) -> str:
        """Pad the last ``len(pads) / 2`` axes (all befores, then all afters); negative crops."""
        k = len(pads) // 2
        axes = range(rank - k, rank)
        crop = [
            (a, -min(b, 0), min(e, 0)) for a, b, e in zip(axes, pads[:k], pads[k:], strict=True)
        ]
        crop = [(a, b, e) for a, b, e in crop if b or e]
        if crop:
            x = self.op(
                "Slice",
                x,
                self.ints(*(b for _, b, _ in crop)),
                self.ints(*(e or np.iinfo(np.int64).max for _, _, e in crop)),
                self.ints(*(a for a, _, _ in crop)),
            )
        low = [max(p, 0) for p in pads]
        if any(low):
            full = [0] * (rank - k) + low[:k] + [0] * (rank - k) + low[k:]
            fill = [] if value is None else [self.const(value)]
            x = self.op("Pad", x, self.ints(*full), *fill)
        return x

    def _patches(
        self,
        x: str,
        kernel: Sequence[int],
        strides: Sequence[int],
        dilation: Sequence[int],
        out: Sequence[int],
    ) -> list[str]:
        parts = []
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                begin = (i * dilation[0], j * dilation[1])
                end = [b + (o - 1) * s + 1 for b, o, s in zip(begin, out, strides, strict=True)]
                parts.append(
                    self.op(
                        "Slice",
                        x,
                        self.ints(*begin),
                        self.ints(*end),
                        self.ints(2, 3),
                        self.ints(*strides),
                    )
                )
        return parts

    def conv2d(
        self,
        x: str,
        weight: str,
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        strides: Sequence[int] = (1, 1),
        pads: Sequence[int] = (0, 0, 0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
    ) -> tuple[str, list[int]]:
        """2-D convolution without bias; pads (top, left, bottom, right) may be negative.

        Args:
            x_shape: [C, H, W] of x; w_shape: [Cout, C/groups, Kh, Kw].

        Returns:
            The result's name and its [Cout, Ho, Wo].
        """
        kernel = list(w_shape[2:])
        out = [
            (s + a + b - d * (k - 1) - 1) // st + 1
            for s, a, b, d, k, st in zip(
                x_shape[1:], pads[:2], pads[2:], dilation, kernel, strides, strict=True
            )
        ]
        shape = [w_shape[0], *out]
        if self.dtype != "float64":
            if min(pads) < 0:
                x, pads = self.pad_crop(x, pads, 4), (0, 0, 0, 0)
            y = self.op(
                "Conv",
                x,
                weight,
                kernel_shape=kernel,
                strides=list(strides),
                pads=list(pads),
                dilations=list(dilation),
                group=groups,
            )
            return y, shape
        x = self.pad_crop(x, pads, 4)
        taps, channels, area = kernel[0] * kernel[1], x_shape[0], out[0] * out[1]
        parts = self._patches(x, kernel, strides, dilation, out)
        p = parts[0] if taps == 1 else self.op("Concat", *parts, axis=1)
        if groups > 1:
            p = self.reshape(p, [0, taps, groups, channels // groups, area])
            p = self.op("Transpose", p, perm=[0, 2, 1, 3, 4])
        p = self.reshape(p, [0, groups, taps * channels // groups, area])
        w = self.op("Transpose", weight, perm=[0, 2, 3, 1])
        w = self.reshape(w, [groups, w_shape[0] // groups, taps * channels // groups])
        return self.reshape(self.op("MatMul", w, p), [0, *shape]), shape

    def avg_pool2d(
        self, x: str, x_shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
    ) -> str:
        """Average pool without padding of x [N, C, H, W]."""
        if self.dtype != "float64":
            return self.op("AveragePool", x, kernel_shape=list(kernel), strides=list(strides))
        out = [(s - k) // st + 1 for s, k, st in zip(x_shape[1:], kernel, strides, strict=True)]
        parts = self._patches(x, kernel, strides, (1, 1), out)
        total = self.op("Sum", *parts)
        return self.op("Mul", total, self.const(1.0 / (kernel[0] * kernel[1])))
