"""``relax.tt.conv2d``: a convolution whose weight is a tensor train of four cores.

``tt.conv2d(x, g1, g2, g3, g4)`` with x [T, N, Cin, H, W] or [N, Cin, H, W], g1 [r1, Cin],
g2 [r2, r1, Kh], g3 [r3, r2, Kw], g4 [Cout, r3] equals the dense convolution of the same strides,
padding and dilation with the weight W [Cout, Cin, Kh, Kw]:

``stt``: ``W[o,i,y,x] = Σ g4[o,c] g3[c,b,x] g2[b,a,y] g1[a,i]``

``ptt``, with g2 [r, r1, Kh] and g3 [r, r1, Kw]: the cross
``W[o,i,y,x] = ½ Σ g4[o,b] (g2[b,a,y] [x = centre] + g3[b,a,x] [y = centre]) g1[a,i]``

``htt``: ptt for the first ``timesteps`` steps; for the others the centre tap alone,
``W[o,i,centre,centre] = Σ g4[o,a] g1[a,i]``.

(Lee et al., TT-SNN, DATE 2024.) The strides sit on g2 and g3. There is no bias.

``tt.conv2d_backward(x, g1, g2, g3, g4, dy) -> (dx, dg1, dg2, dg3, dg4)`` is its gradient, an
operator of its own so that training programs keep the chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tvm
from tvm import relax

from ttsnn.ops.registry import make_call, register_op
from ttsnn.ops.types import as_int, differ, dims, fail, same_dtype, shape_text, tensor_types

__all__ = [
    "MODES",
    "TT_CONV2D",
    "TT_CONV2D_BACKWARD",
    "TTConvAttrs",
    "tt_conv2d",
    "tt_conv2d_backward",
    "tt_conv_attrs_of",
]

TT_CONV2D = "relax.tt.conv2d"
TT_CONV2D_BACKWARD = "relax.tt.conv2d_backward"
MODES = ("stt", "ptt", "htt")
_OPERANDS = ("x", "g1", "g2", "g3", "g4")


@dataclass(frozen=True)
class TTConvAttrs:
    """Attributes of ``relax.tt.conv2d``.

    Attributes:
        mode: ``stt``, ``ptt`` or ``htt``.
        timesteps: leading timesteps that run the full chain (htt only); -1 means all.
        strides: (vertical, horizontal).
        padding: (top, left, bottom, right).
        dilation: (vertical, horizontal).
        form: how a compiler decided to contract the chain (``ScheduleContractions``); it has no
            influence on the values. Empty where nobody decided yet.
    """

    mode: str = "stt"
    timesteps: int = -1
    strides: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    form: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Attributes of the operator's call; ``form`` where it is decided."""
        given = {k: v for k, v in asdict(self).items() if k != "form" or v}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items()}

    def out_size(self, size: tuple[Any, Any], kernel: tuple[int, int]) -> tuple[Any, Any]:
        """Height and width of the output, for input (H, W) and kernel (Kh, Kw)."""
        top, left, bottom, right = self.padding
        pads = (top + bottom, left + right)
        out = [
            (s + p - d * (k - 1) - 1) // st + 1
            for s, p, d, k, st in zip(size, pads, self.dilation, kernel, self.strides)
        ]
        return out[0], out[1]


def tt_conv2d(
    x: relax.Expr,
    g1: relax.Expr,
    g2: relax.Expr,
    g3: relax.Expr,
    g4: relax.Expr,
    *,
    mode: str = "stt",
    timesteps: int | None = None,
    strides: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
) -> tvm.ir.Call:
    """Call of ``relax.tt.conv2d``; the module's docstring has shapes and equations.

    Args:
        x: input [T, N, Cin, H, W], or [N, Cin, H, W] (not htt).
        g1, g2, g3, g4: cores of the input's dtype.
        mode: ``stt``, ``ptt`` or ``htt``.
        timesteps: leading timesteps that run the full chain; htt only, None means all.
        strides, dilation: one number or (vertical, horizontal).
        padding: one number, (vertical, horizontal) or (top, left, bottom, right).

    Returns:
        A call of type [(T,) N, Cout, Ho, Wo].

    Raises:
        PassError: for operands or attributes that do not fit.
    """
    attrs = TTConvAttrs(
        mode,
        -1 if timesteps is None else int(timesteps),
        _spread(strides, 2),
        _spread(padding, 4),
        _spread(dilation, 2),
    )
    return make_call(TT_CONV2D, [x, g1, g2, g3, g4], attrs.to_dict())


def tt_conv2d_backward(
    x: relax.Expr,
    g1: relax.Expr,
    g2: relax.Expr,
    g3: relax.Expr,
    g4: relax.Expr,
    dy: relax.Expr,
    attrs: TTConvAttrs,
) -> tvm.ir.Call:
    """Call of ``relax.tt.conv2d_backward``: (dx, dg1, dg2, dg3, dg4) for dy like the output."""
    return make_call(TT_CONV2D_BACKWARD, [x, g1, g2, g3, g4, dy], attrs.to_dict())


def tt_conv_attrs_of(call: tvm.ir.Call) -> TTConvAttrs:
    """Attributes of a ``tt.conv2d`` or ``tt.conv2d_backward`` call, with defaults for missing ones.

    Raises:
        PassError: for an unknown attribute or a value out of its range.
    """
    given = {} if call.attrs is None else {str(k): call.attrs[k] for k in call.attrs.keys()}  # noqa: SIM118
    op = call.op.name
    unknown = sorted(set(given) - set(TTConvAttrs.__dataclass_fields__))
    if unknown:
        known = ", ".join(TTConvAttrs.__dataclass_fields__)
        fail(op, f"unknown attribute {', '.join(unknown)}; there are {known}")
    for name, count in (("strides", 2), ("padding", 4), ("dilation", 2)):
        if name in given:
            given[name] = tuple(int(v) for v in given[name])
            if len(given[name]) != count:
                fail(op, f"{name} {list(given[name])} must have {count} entries")
    if "timesteps" in given:
        given["timesteps"] = int(given["timesteps"])
    attrs = TTConvAttrs(**given)
    if attrs.mode not in MODES:
        fail(op, f"unknown mode {attrs.mode!r}; use one of {', '.join(MODES)}")
    for name in ("strides", "dilation"):
        if min(getattr(attrs, name)) < 1:
            fail(op, f"{name} {list(getattr(attrs, name))} must be at least 1")
    if min(attrs.padding) < 0:
        fail(op, f"padding {list(attrs.padding)} must not be negative")
    if attrs.timesteps < -1:
        fail(op, f"timesteps must be -1 (all) or at least 0, got {attrs.timesteps}")
    if attrs.mode != "htt" and attrs.timesteps != -1:
        fail(
            op,
            f"timesteps {attrs.timesteps} is for mode 'htt'; leave it at -1 in mode {attrs.mode!r}",
        )
    return attrs


def _spread(value: int | Sequence[int], count: int) -> tuple[Any, ...]:
    if isinstance(value, int):
        return (value,) * count
    values = tuple(int(v) for v in value)
    return values * 2 if len(values) == 2 and count == 4 else values


def _static(op: str, name: str, ty: relax.TensorType) -> list[int]:
    shape = dims(ty)
    if shape is None or any(as_int(s) is None for s in shape):
        fail(op, f"core {name} {shape_text(ty)} must have a static shape")
    return [int(s) for s in shape]


def _check_cores(
    op: str, attrs: TTConvAttrs, types: list[relax.TensorType]
) -> tuple[int, int, tuple[int, int]]:
    """Check the four cores against each other; return Cin, Cout, (Kh, Kw)."""
    for name, ty, ndim, form in zip(
        _OPERANDS[1:],
        types,
        (2, 3, 3, 2),
        ("[r1, Cin]", "[r2, r1, Kh]", "[r3, r2, Kw]", "[Cout, r3]"),
    ):
        if ty.ndim != ndim:
            fail(op, f"core {name} must be {form}, got {shape_text(ty)}")
    g1, g2, g3, g4 = (_static(op, n, t) for n, t in zip(_OPERANDS[1:], types))
    serial = attrs.mode == "stt"
    links = [
        ("g2", g2, 1, "g1", g1, 0),
        ("g3", g3, 1, "g2", g2, 0) if serial else ("g3", g3, 1, "g1", g1, 0),
        ("g4", g4, 1, "g3", g3, 0),
    ]
    if not serial:
        links.append(("g3", g3, 0, "g2", g2, 0))
    if attrs.mode == "htt":
        links.append(("g4", g4, 1, "g1", g1, 0))
    for name, shape, axis, other, other_shape, other_axis in links:
        if shape[axis] != other_shape[other_axis]:
            fail(
                op,
                f"ranks do not meet in mode {attrs.mode!r}: {name} {shape} has {shape[axis]} on "
                f"axis {axis}, {other} {other_shape} has {other_shape[other_axis]} on axis "
                f"{other_axis}; check the cores' order and the mode they were made for",
            )
    kernel = (g2[2], g3[2])
    if not serial and any(k % 2 == 0 for k in kernel):
        fail(
            op,
            f"mode {attrs.mode!r} needs a centre tap, but the kernel of g2 {g2} and g3 {g3} is "
            f"{kernel[0]}×{kernel[1]}; use odd sizes or mode 'stt'",
        )
    return g1[1], g4[0], kernel


def _infer_output(call: tvm.ir.Call, op: str, names: Sequence[str]) -> list[relax.TensorType]:
    """Check the forward operands; return their types with the output's appended."""
    attrs = tt_conv_attrs_of(call)
    types = tensor_types(call, op, names)
    dtype = same_dtype(op, names, types)
    x = types[0]
    allowed = (5,) if attrs.mode == "htt" else (4, 5)
    if x.ndim not in allowed:
        form = "[T, N, C, H, W]" + ("" if attrs.mode == "htt" else " or [N, C, H, W]")
        fail(op, f"x must be {form} in mode {attrs.mode!r}, got {shape_text(x)}")
    cin, cout, kernel = _check_cores(op, attrs, types[1:5])
    shape = dims(x)
    if shape is None:
        return [*types[:5], relax.TensorType(dtype=dtype, ndim=x.ndim)]
    if differ(shape[-3], cin):
        fail(
            op,
            f"x {shape_text(x)} has {shape[-3]} channels, core g1 {shape_text(types[1])} "
            f"takes {cin}; channels come before height and width",
        )
    if attrs.mode == "htt":
        steps = as_int(shape[0])
        if steps is None:
            fail(op, f"the number of timesteps of x {shape_text(x)} must be static in mode 'htt'")
        if attrs.timesteps > steps:
            fail(op, f"timesteps {attrs.timesteps} is more than x {shape_text(x)} has ({steps})")
    out = attrs.out_size((shape[-2], shape[-1]), kernel)
    if any((as_int(s) or 0) < 1 for s in out if as_int(s) is not None):
        fail(
            op,
            f"kernel {kernel[0]}×{kernel[1]} with dilation {list(attrs.dilation)} does not fit "
            f"into x {shape_text(x)} with padding {list(attrs.padding)}; pad more",
        )
    return [*types[:5], relax.TensorType([*shape[:-3], cout, *out], dtype)]


def _infer_conv(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    return _infer_output(call, TT_CONV2D, _OPERANDS)[-1]


def _infer_conv_backward(call: tvm.ir.Call, _: Any) -> tvm.ir.Type:
    types = _infer_output(call, TT_CONV2D_BACKWARD, [*_OPERANDS, "dy"])
    dy, want = call.args[5].ty, types[-1]
    got, ws = dims(dy), dims(want)
    if dy.ndim != want.ndim or (got and ws and any(map(differ, got, ws))):
        fail(
            TT_CONV2D_BACKWARD,
            f"dy {shape_text(dy)} must have the shape of the output, {shape_text(want)}",
        )
    return relax.TupleType(types[:5])


register_op(TT_CONV2D, _infer_conv, _OPERANDS, "Convolution by four tensor-train cores.")
register_op(
    TT_CONV2D_BACKWARD,
    _infer_conv_backward,
    [*_OPERANDS, "dy"],
    "Gradient of relax.tt.conv2d.",
)
