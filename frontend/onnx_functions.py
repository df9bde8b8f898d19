"""Neurons and tensor-train layers as ONNX functions of the domain ``ttsnn``.

Each body consists of standard operators, so that any ONNX runtime executes it; each function has
the settings of the operator as its attributes, so that our importer gets the operator back. The
neuron is unrolled over its timesteps: runtimes fuse and schedule that better than a Scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ttsnn.frontend.onnx_graph import DOMAIN, OPSET, GraphBuilder, require_onnx, tensor_type
from ttsnn.lif_attrs import LifAttrs

__all__ = ["layer_function", "lif_function", "tt_conv2d_function", "tt_linear_function"]


def _function(
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    body: GraphBuilder,
    attrs: dict,
    doc: str,
) -> Any:
    onnx = require_onnx()
    protos = [onnx.helper.make_attribute(k, v) for k, v in attrs.items()]
    return onnx.helper.make_function(
        DOMAIN,
        name,
        list(inputs),
        list(outputs),
        body.nodes,
        [onnx.helper.make_opsetid("", OPSET)],
        attribute_protos=protos,
        doc_string=doc,
    )


def _fires(b: GraphBuilder, v: str, th: str, a: LifAttrs) -> str:
    return b.op("Greater" if a.fire == ">" else "GreaterOrEqual", v, th, hint="fires")


def _reset(b: GraphBuilder, v: str, spike: tuple[str, str], th: str, a: LifAttrs) -> str:
    """Reset of a membrane by a spike, given as (boolean, number)."""
    if a.reset == "hard":
        return b.op("Where", spike[0], b.const(a.v_reset), v, hint="v")
    if a.reset == "soft":
        return b.op("Sub", v, b.op("Mul", spike[1], th), hint="v")
    return v


def _update(b: GraphBuilder, v: str | None, x: str, decay: str, a: LifAttrs) -> str:
    """One membrane update; v None is zero, where that needs no arithmetic."""
    if a.form == "multiply":
        if a.gain != 1:
            x = b.op("Mul", b.const(a.gain), x)
        return x if v is None else b.op("Add", b.op("Mul", decay, v), x, hint="h")
    v = b.const(0.0) if v is None else v
    leak = v if a.rest == 0 else b.op("Sub", v, b.const(a.rest))
    scale = "Mul" if a.decay_operand else "Div"  # the operand is the rate that stands for 1/tau
    if a.form == "euler":
        return b.op("Add", v, b.op(scale, b.op("Sub", x, leak), decay), hint="h")
    return b.op("Add", b.op("Sub", v, b.op(scale, leak, decay)), x, hint="h")


def lif_function(name: str, a: LifAttrs, steps: int, dtype: str, has_v0: bool, attrs: dict) -> Any:
    """``(x [T, N, …][, v0 [N, …]][, decay][, v_threshold]) → (spikes [T, N, …], v_last)``.

    Without ``v0`` the membrane starts from zero. Equations: :mod:`ttsnn.lif_attrs`.
    """
    b = GraphBuilder(dtype)
    inputs = ["x"] + ["v0"] * has_v0 + ["decay"] * a.decay_operand
    inputs += ["v_threshold"] * a.threshold_operand
    for reserved in (*inputs, "spikes", "v_last"):
        b.name(reserved)
    constant = a.decay if a.form == "multiply" else a.tau
    decay = "decay" if a.decay_operand else b.const(constant)
    th = "v_threshold" if a.threshold_operand else b.const(a.v_threshold)
    axis = b.ints(0)
    parts = (
        ["x"]
        if steps == 1
        else b.op("Split", "x", hint="x_t", outputs=steps, axis=0, num_outputs=steps)
    )
    v = b.op("Unsqueeze", "v0", axis) if has_v0 else None
    spikes = []
    for x in parts:
        if a.reset_timing == "after_fire":
            h = _update(b, v, x, decay, a)
        else:
            # a membrane of zero may itself be above the threshold, or at it
            v = b.op("Mul", x, b.const(0.0)) if v is None else v
            fired = _fires(b, v, th, a)
            before = fired, b.op("Cast", fired, to=tensor_type(dtype))
            if a.reset_timing == "before_decay":
                v = _reset(b, v, before, th, a)
            h = _update(b, v, x, decay, a)
            if a.reset_timing == "after_decay":
                h = _reset(b, h, before, th, a)
        fired = _fires(b, h, th, a)
        spike = b.op("Cast", fired, to=tensor_type(dtype), hint="s")
        spikes.append(spike)
        v = _reset(b, h, (fired, spike), th, a) if a.reset_timing == "after_fire" else h
    onnx = b.onnx
    b.nodes.append(onnx.helper.make_node("Concat", spikes, ["spikes"], axis=0))
    b.nodes.append(onnx.helper.make_node("Squeeze", [v, axis], ["v_last"]))
    return _function(name, inputs, ["spikes", "v_last"], b, attrs, lif_function.__doc__ or "")


def _chain(
    b: GraphBuilder,
    x: str,
    shape: list[int],
    g: dict[str, tuple[str, list[int]]],
    a: Any,
    full: bool,
) -> tuple[str, list[int]]:
    """The four cores (or with ``full`` False G1 and G4 alone) on x [M, C, H, W]."""
    (top, left, bottom, right), (sh, sw), (dh, dw) = a.padding, a.strides, a.dilation
    kh, kw = g["g2"][1][2], g["g3"][1][3]
    ct, cl = top - kh // 2 * dh, left - kw // 2 * dw
    cb, cr = bottom - kh // 2 * dh, right - kw // 2 * dw
    if not full:
        h, s = b.conv2d(x, *_with(g["g1"], shape), strides=(sh, sw), pads=(ct, cl, cb, cr))
        return b.conv2d(h, *_with(g["g4"], s))
    h, s = b.conv2d(x, *_with(g["g1"], shape))
    if a.mode == "stt":
        h, s = b.conv2d(
            h, *_with(g["g2"], s), strides=(sh, 1), pads=(top, 0, bottom, 0), dilation=(dh, 1)
        )
        h, s = b.conv2d(
            h, *_with(g["g3"], s), strides=(1, sw), pads=(0, left, 0, right), dilation=(1, dw)
        )
    else:
        args: dict[str, Any] = {"strides": (sh, sw), "dilation": (dh, dw)}
        col, out = b.conv2d(h, *_with(g["g2"], s), pads=(top, cl, bottom, cr), **args)
        row, _ = b.conv2d(h, *_with(g["g3"], s), pads=(ct, left, cb, right), **args)
        h, s = b.op("Mul", b.op("Add", col, row), b.const(0.5)), out
    return b.conv2d(h, *_with(g["g4"], s))


def _with(core: tuple[str, list[int]], shape: list[int]) -> tuple[str, list[int], list[int]]:
    return core[0], shape, core[1]


def tt_conv2d_function(
    name: str, a: Any, x_shape: list[Any], cores: list[list[int]], dtype: str, attrs: dict
) -> Any:
    """``(x, g1 [r1, Cin], g2 [r2, r1, Kh], g3 [r3, r2, Kw], g4 [Cout, r3]) → y``.

    x is [T, N, Cin, H, W] or [N, Cin, H, W]; see ``relax.tt.conv2d`` for the equations.
    """
    b = GraphBuilder(dtype)
    inputs = ["x", "g1", "g2", "g3", "g4"]
    for reserved in (*inputs, "y"):
        b.name(reserved)
    unit = {"g1": [2, 3], "g2": [3], "g3": [2], "g4": [2, 3]}
    wide = {}
    for key, shape in zip(inputs[1:], cores, strict=True):
        with_units = list(shape)
        for axis in unit[key]:
            with_units.insert(axis, 1)
        wide[key] = b.op("Unsqueeze", key, b.ints(*unit[key])), with_units
    image = [int(s) for s in x_shape[-3:]]
    if len(x_shape) == 4:
        y, _ = _chain(b, "x", image, wide, a, True)
    else:
        steps = int(x_shape[0])
        full = steps if a.mode != "htt" or a.timesteps < 0 else min(a.timesteps, steps)
        sizes = [s for s in (full, steps - full) if s]
        parts = ["x"]
        if len(sizes) == 2:
            parts = b.op("Split", "x", b.ints(*sizes), outputs=2, axis=0)
        results = []
        for part, size, whole in zip(
            parts, sizes, [True, False] if full else [False], strict=False
        ):
            h, out = _chain(b, b.reshape(part, [-1, *image]), image, wide, a, whole)
            results.append(b.reshape(h, [size, -1, *out]))
        y = results[0] if len(results) == 1 else b.op("Concat", *results, axis=0)
    b.nodes.append(b.onnx.helper.make_node("Identity", [y], ["y"]))
    return _function(name, inputs, ["y"], b, attrs, tt_conv2d_function.__doc__ or "")


def tt_linear_function(name: str, cores: list[list[int]], dtype: str, attrs: dict) -> Any:
    """``(x [..., Πn], cores [r, m, n, r']…) → y [..., Πm]``, core by core."""
    b = GraphBuilder(dtype)
    inputs = ["x", *(f"core{k}" for k in range(len(cores)))]
    for reserved in (*inputs, "y"):
        b.name(reserved)
    rest = 1
    for core in cores[1:]:
        rest *= core[2]
    lead = b.op("Slice", b.op("Shape", "x"), b.ints(0), b.ints(-1))
    z = b.reshape("x", [-1, cores[0][2], rest])
    for k, (r, m, n, r_next) in enumerate(cores):
        w = b.reshape(b.op("Transpose", inputs[k + 1], perm=[0, 2, 3, 1]), [r * n, r_next * m])
        z = b.op("MatMul", b.op("Transpose", z, perm=[0, 2, 1]), w)
        z = b.op("Transpose", b.reshape(z, [0, rest, r_next, m]), perm=[0, 2, 1, 3])
        if k + 1 < len(cores):
            n_next = cores[k + 1][2]
            rest = rest // n_next * m
            z = b.reshape(z, [0, r_next * n_next, rest])
    total = 1
    for core in cores:
        total *= core[1]
    shape = b.op("Concat", lead, b.ints(total), axis=0)
    b.nodes.append(b.onnx.helper.make_node("Reshape", [z, shape], ["y"]))
    return _function(name, inputs, ["y"], b, attrs, tt_linear_function.__doc__ or "")


def layer_function(name: str, x_shape: Sequence[int], w_shape: Sequence[int], attrs: dict) -> Any:
    """Float64 ``conv2d(x, w)``, or average pool where there is no ``w``; not in ONNX Runtime.

    x is [N, C, H, W]; ``x_shape`` is [C, H, W], and ``w_shape`` empty for a pool.
    """
    b = GraphBuilder("float64")
    inputs = ["x", "w"] if w_shape else ["x"]
    for reserved in (*inputs, "y"):
        b.name(reserved)
    if w_shape:
        sizes = attrs["strides"], attrs["padding"], attrs["dilation"], attrs["groups"]
        y, _ = b.conv2d("x", "w", x_shape, w_shape, *sizes)
    else:
        y = b.avg_pool2d("x", x_shape, attrs["pool_size"], attrs["strides"])
    b.nodes.append(b.onnx.helper.make_node("Identity", [y], ["y"]))
    return _function(name, inputs, ["y"], b, attrs, layer_function.__doc__ or "")
