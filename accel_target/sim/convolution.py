"""Values of GEMM, WGRAD, POOL on tiles; operands are [frames, rows, width, channels]."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ttsnn.accel_target.codegen.builder import Geometry
from ttsnn.accel_target.isa import Pool
from ttsnn.errors import TargetError

__all__ = ["conv", "conv_back", "pool", "pool_back", "weight_grad"]

_Cut = tuple[int, slice, slice, slice, slice]


def _range(first: int, count: int, stride: int, offset: int, size: int) -> tuple[int, int]:
    """Output positions first ≤ o < first + count with 0 ≤ o · stride + offset < size."""
    low = max(first, -(offset // stride))
    high = min(first + count, (size - 1 - offset) // stride + 1)
    return low, max(high, low)


def _cuts(g: Geometry, out0: int, outs: int, in0: int, ins: int) -> Iterator[_Cut]:
    """For each tap: slices of the output tile's rows and columns, and of the input tile's.

    Raises:
        TargetError: a row inside the image is not in the input tile.
    """
    sh, sw, taps, in_h, in_w, _, out_w = g
    for k, (dy, dx) in enumerate(taps):
        a, b = _range(out0, outs, sh, dy, in_h)
        c, d = _range(0, out_w, sw, dx, in_w)
        if a == b or c == d:
            continue
        top, bottom = a * sh + dy, (b - 1) * sh + dy
        if top < in0 or bottom >= in0 + ins:
            raise TargetError(
                f"needs rows {top} to {bottom} of its operand, which holds {in0} to "
                f"{in0 + ins - 1}: the halo is missing"
            )
        yield (
            k,
            slice(a - out0, b - out0),
            slice(c, d),
            slice(top - in0, bottom - in0 + 1, sh),
            slice(c * sw + dx, (d - 1) * sw + dx + 1, sw),
        )


def conv(
    x: np.ndarray, w: np.ndarray, g: Geometry, out0: int, outs: int, in0: int
) -> tuple[np.ndarray, int]:
    """``y[o] = Σ_k x[o · s + d_k] w[k]`` for rows out0 … out0 + outs; w [taps, Cin, Cout].

    Returns:
        The rows, and the number of non-zero operands of x that were multiplied, for one output
        channel.
    """
    frames, cin, cout = x.shape[0], w.shape[1], w.shape[2]
    y = np.zeros((frames, outs, g[6], cout), x.dtype)
    active = 0
    for k, ro, co, ri, ci in _cuts(g, out0, outs, in0, x.shape[1]):
        part = x[:, ri, ci]
        active += int(np.count_nonzero(part))
        shape = part.shape[:3]
        y[:, ro, co] += (part.reshape(-1, cin) @ w[k]).reshape(*shape, cout)
    return y, active


def conv_back(
    dy: np.ndarray, w: np.ndarray, g: Geometry, in0: int, ins: int, out0: int
) -> tuple[np.ndarray, int]:
    """``dx[i] = Σ dy[o] w[k]ᵀ`` over o, k with o · s + d_k = i, for rows in0 … in0 + ins."""
    sh, sw, taps, _in_h, in_w, out_h, out_w = g
    frames, cin, cout = dy.shape[0], w.shape[1], w.shape[2]
    dx = np.zeros((frames, ins, in_w, cin), dy.dtype)
    active = 0
    for k, (a, b) in enumerate(taps):
        first = max(0, -((a - in0) // sh))
        last = min(out_h, (in0 + ins - 1 - a) // sh + 1)
        c, d = _range(0, out_w, sw, b, in_w)
        if first >= last or c == d:
            continue
        if first < out0 or last > out0 + dy.shape[1]:
            raise TargetError(
                f"needs rows {first} to {last - 1} of its operand, which holds {out0} to "
                f"{out0 + dy.shape[1] - 1}: the halo is missing"
            )
        part = dy[:, first - out0 : last - out0, c:d]
        active += int(np.count_nonzero(part))
        r0 = first * sh + a - in0
        rows = slice(r0, r0 + (last - first - 1) * sh + 1, sh)
        columns = slice(c * sw + b, (d - 1) * sw + b + 1, sw)
        value = part.reshape(-1, cout) @ w[k].T
        dx[:, rows, columns] += value.reshape(*part.shape[:3], cin)
    return dx, active


def weight_grad(
    x: np.ndarray, dy: np.ndarray, g: Geometry, out0: int, in0: int
) -> tuple[np.ndarray, int]:
    """``dw[k] = Σ x[o · s + d_k] ⊗ dy[o]``, [taps, Cin, Cout], over the rows of dy."""
    cin, cout = x.shape[3], dy.shape[3]
    dw = np.zeros((len(g[2]), cin, cout), x.dtype)
    active = 0
    for k, ro, co, ri, ci in _cuts(g, out0, dy.shape[1], in0, x.shape[1]):
        part = x[:, ri, ci]
        active += int(np.count_nonzero(part))
        dw[k] += part.reshape(-1, cin).T @ dy[:, ro, co].reshape(-1, cout)
    return dw, active


def pool(x: np.ndarray, g: Geometry, out0: int, outs: int, in0: int, kind: Pool) -> np.ndarray:
    """Mean (zeros outside count), maximum or sum over the window's taps.

    ``FLAT`` is of a window that is the whole image: [frames, 1, channels, taps].
    """
    if kind == Pool.FLAT:
        if in0 or x.shape[1] < g[3]:
            raise TargetError("needs all rows of its operand")
        whole = [x[:, a, b] for a, b in g[2]]
        return np.stack(whole, axis=-1)[:, None]
    maximum = kind == Pool.MAX
    y = np.full((x.shape[0], outs, g[6], x.shape[3]), -np.inf if maximum else 0.0, x.dtype)
    for _, ro, co, ri, ci in _cuts(g, out0, outs, in0, x.shape[1]):
        part = x[:, ri, ci]
        y[:, ro, co] = np.maximum(y[:, ro, co], part) if maximum else y[:, ro, co] + part
    return y / len(g[2]) if kind == Pool.MEAN else y


def pool_back(
    dy: np.ndarray, x: np.ndarray | None, g: Geometry, in0: int, ins: int, out0: int, kind: Pool
) -> np.ndarray:
    """Gradient of a mean or sum, or with x of a maximum (to the first that has it), or of FLAT.

    dy must hold all rows whose windows touch the rows in0 … in0 + ins.
    """
    sh, sw, taps, in_h, in_w, _out_h, out_w = g
    if kind == Pool.FLAT:
        dx = np.zeros((dy.shape[0], ins, in_w, dy.shape[2]), dy.dtype)
        for k, (a, b) in enumerate(taps):
            if in0 <= a < in0 + ins:
                dx[:, a - in0, b] = dy[:, 0, :, k]
        return dx
    frames, _, _, channels = dy.shape
    dx = np.zeros((frames, ins, in_w, channels), dy.dtype)
    scale = dy.dtype.type(1 / len(taps) if kind == Pool.MEAN else 1)
    rows = range(out0, out0 + dy.shape[1])
    for o in rows:
        free = np.ones((frames, out_w, channels), bool)
        best = None
        if x is not None:
            best = pool(x, g, o, 1, in0, Pool.MAX)[:, 0]
        for a, b in taps:
            r = o * sh + a
            c, d = _range(0, out_w, sw, b, in_w)
            if not 0 <= r < in_h or c == d or not in0 <= r < in0 + ins:
                continue
            columns = slice(c * sw + b, (d - 1) * sw + b + 1, sw)
            grad = dy[:, o - out0, c:d] * scale
            if best is not None and x is not None:
                here = (x[:, r - in0, columns] == best[:, c:d]) & free[:, c:d]
                free[:, c:d] &= ~here
                grad = np.where(here, grad, 0)
            dx[:, r - in0, columns] += grad
    return dx
