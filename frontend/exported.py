"""``torch.export.ExportedProgram`` → program.

Inputs of ``main``, in order: the user's tensors, then the state (buffers that the model
updates), then the parameters. Float buffers are parameters. Outputs: the user's, then the new
state in the order of the state inputs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import tvm
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from tvm import relax

from ttsnn.errors import ModelImportError
from ttsnn.frontend import aten_elementwise, aten_nn, aten_reduce, aten_shape, dialect
from ttsnn.frontend.describe import quiet
from ttsnn.frontend.translate import Converter, Translator, Unsupported, dtype_name
from ttsnn.program import make_program
from ttsnn.specs import TensorSpec

__all__ = ["CONVERTERS", "META", "decompose", "from_exported"]

META = "ttsnn.meta"

CONVERTERS: dict[str, Converter] = {
    **aten_elementwise.CONVERTERS,
    **aten_shape.CONVERTERS,
    **aten_nn.CONVERTERS,
    **aten_reduce.CONVERTERS,
    **dialect.CONVERTERS,
}

# Operators that are translated as they are rather than in the pieces that PyTorch would make.
_KEEP_WHOLE = """
    _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default adaptive_avg_pool1d.default
    adaptive_avg_pool2d.default adaptive_avg_pool3d.default addmv.default avg_pool1d.default
    avg_pool3d.default baddbmm.default elu.default floor_divide.default hardtanh.default
    index_select.default instance_norm.default leaky_relu.default linear.default
    log_softmax.int masked_fill.Scalar matmul.default max_pool1d.default max_pool2d.default
    max_pool3d.default mv.default narrow.default native_group_norm.default
    native_layer_norm.default new_zeros.default pixel_shuffle.default
    reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default
    repeat_interleave.self_int replication_pad1d.default replication_pad2d.default
    replication_pad3d.default rsub.Scalar select_scatter.default silu.default
    slice_scatter.default softmax.int softplus.default split.Tensor split_with_sizes.default
    stack.default std.correction unbind.int upsample_bilinear2d.vec upsample_linear1d.vec
    upsample_nearest1d.vec upsample_nearest2d.vec upsample_nearest3d.vec
    upsample_trilinear3d.vec zeros_like.default _upsample_nearest_exact1d.vec
    _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec
"""


def decompose(exported: ExportedProgram) -> ExportedProgram:
    """Core ATen operators, but linear, matmul, pools … and the dialect's whole."""
    table = torch.export.default_decompositions()
    for name in _KEEP_WHOLE.split():
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if op is not None:
            table.pop(op, None)
    for op in [o for o in table if getattr(o, "namespace", "") == "ttsnn"]:
        table.pop(op)
    with quiet():
        return exported.run_decompositions(table)


@dataclass
class _Signature:
    """Arguments of ``main`` by kind; each maps a placeholder to its public name."""

    inputs: dict[str, str] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    buffers: list[str] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict)
    values: dict[str, torch.Tensor] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


def _signature(ep: ExportedProgram) -> _Signature:
    out = _Signature()
    mutated = set(ep.graph_signature.buffers_to_mutate.values())
    tensors = {**dict(ep.named_parameters()), **dict(ep.named_buffers()), **ep.constants}
    for spec in ep.graph_signature.input_specs:
        arg = spec.arg
        if spec.kind == InputKind.USER_INPUT:
            if isinstance(arg, TensorArgument):
                out.inputs[arg.name] = arg.name
            elif isinstance(arg, ConstantArgument):
                out.fixed[arg.name] = arg.value
            elif isinstance(arg, SymIntArgument):
                raise ModelImportError(
                    f"input {arg.name!r} is a number that varies; make it a tensor, or fix it"
                )
            continue
        if spec.kind == InputKind.TOKEN:  # order of side effects; what needs it is refused
            out.fixed[arg.name] = None
            continue
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise ModelImportError(f"inputs of kind {spec.kind.name.lower()} are not supported")
        value = tensors[spec.target].detach()
        out.values[arg.name] = value
        if spec.target in mutated:
            out.states[arg.name] = spec.target
        elif spec.kind == InputKind.PARAMETER or (
            value.is_floating_point() and not spec.target.startswith("lifted_tensor_")
        ):
            out.params[arg.name] = spec.target
            if spec.kind != InputKind.PARAMETER:
                out.buffers.append(spec.target)
        else:
            out.constants[arg.name] = spec.target
    return out


def _numpy(name: str, value: torch.Tensor) -> np.ndarray:
    try:
        dtype_name(value.dtype)
    except Unsupported as err:
        raise ModelImportError(f"parameter {name!r}: {err}; convert the model first") from None
    if value.layout != torch.strided:
        raise ModelImportError(f"parameter {name!r} is sparse; convert it with to_dense()")
    return np.asarray(value.cpu().numpy(), order="C")


def _initial(name: str, value: torch.Tensor) -> float:
    """The one number that a state starts from."""
    flat = value.reshape(-1)
    if flat.numel() and not bool((flat == flat[0]).all()):
        raise ModelImportError(
            f"state {name!r} {list(value.shape)} holds values of an earlier run; reset the "
            "network's state before importing it"
        )
    return float(flat[0]) if flat.numel() else 0.0


def symbol_names(ep: ExportedProgram) -> dict[str, str]:
    """Names of the sizes that vary: ``n`` where there is one (the batch), else n, n1, n2 …"""
    symbols: list[str] = []
    for node in ep.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor):
            for size in value.shape:
                if isinstance(size, torch.SymInt):
                    symbols += [str(s) for s in sorted(size.node.expr.free_symbols, key=str)]
    return {s: f"n{i or ''}" for i, s in enumerate(dict.fromkeys(symbols))}


def from_exported(
    ep: ExportedProgram,
    what: str = "the model",
    T: int | None = None,
    batch_axis: int | None = None,
) -> Any:
    """Translate an exported program.

    Args:
        ep: exported in eval mode; decomposed here.
        what: how messages call the model.
        T: number of timesteps for the meta data; by default that of the neurons, if they agree.
        batch_axis: axis of the batch in the first input, for the meta data, where it is known.

    Returns:
        The program: an ``IRModule`` as :mod:`ttsnn.program` describes, with the module attribute
        ``ttsnn.meta``, JSON of ``{"inputs": […], "outputs": […], "state": [{"input", "output",
        "initial"}], "T", "buffers", "batch_axis"}``; ``initial`` is the number that fills a state
        before the first call, ``buffers`` names the parameters that are no parameters in PyTorch.

    Raises:
        ModelImportError: with every operator that cannot be imported.
    """
    ep = decompose(ep)
    _refuse_mutated_inputs(ep)
    sig = _signature(ep)
    t = Translator(CONVERTERS, symbol_names(ep))
    nodes = {n.name: n for n in ep.graph.nodes if n.op == "placeholder"}
    args: dict[str, relax.Var] = {}
    for name, public in {**sig.inputs, **sig.states, **sig.params}.items():
        try:
            ty = t.tensor_type(nodes[name].meta["val"])
        except Unsupported as err:
            raise ModelImportError(f"input {public!r}: {err}; convert the model first") from None
        args[name] = relax.Var(public.replace(".", "_"), ty)
        t.env[nodes[name]] = args[name]
    for name, value in sig.fixed.items():
        t.env[nodes[name]] = value

    with t.bb.function("main", list(args.values())):
        with t.bb.dataflow():
            for name in sig.constants:
                value = _numpy(sig.constants[name], sig.values[name])
                t.env[nodes[name]] = t.const(value, str(value.dtype))
            outputs = _translate(t, ep, what)
            if t.problems:  # close the function before raising, or the builder complains
                outputs = [t.const(0, "float32")]
            result = outputs[0] if len(outputs) == 1 else relax.Tuple(outputs)
            result = t.bb.emit_output(result)
        t.bb.emit_func_output(result)
    t.raise_problems(what)
    func = t.bb.get()["main"].with_attr("num_input", len(sig.inputs) + len(sig.states))
    params = {public: _numpy(public, sig.values[name]) for name, public in sig.params.items()}
    mod = relax.transform.DeadCodeElimination(["main"])(make_program(func, params))
    seen = set(t.timesteps)
    # single steps in a loop say nothing about how many there are
    steps = next(iter(seen)) if len(seen) == 1 and (seen != {1} or T is None) else T
    meta = _meta(mod["main"], ep, sig, steps)
    if batch_axis is not None:
        meta["batch_axis"] = batch_axis
    return mod.with_attr(META, json.dumps(meta))


def _translate(t: Translator, ep: ExportedProgram, what: str) -> list[relax.Expr]:
    output: Any = None
    for node in ep.graph.nodes:
        if node.op == "call_function":
            t.run_node(node)
        elif node.op == "get_attr":
            t._refuse(node, "control flow that depends on data; use where on both results")
        elif node.op == "output":
            output = node.args[0]
    t.node = None
    if t.problems:
        return []
    out: list[relax.Expr] = []
    state: dict[str, relax.Expr] = {}
    for spec, arg in zip(ep.graph_signature.output_specs, output, strict=True):
        if spec.kind == OutputKind.TOKEN:
            continue
        value = t.value(arg)
        if spec.kind == OutputKind.BUFFER_MUTATION:
            state[spec.target] = value
            continue
        if spec.kind != OutputKind.USER_OUTPUT or not isinstance(value, relax.Expr):
            raise ModelImportError(
                f"{what}: output {spec.arg} is no tensor; return tensors only from forward"
            )
        out.append(value)
    if not out:
        raise ModelImportError(f"{what} returns nothing; return its result from forward")
    return out + [state[name] for name in _state_order(ep)]


def _state_order(ep: ExportedProgram) -> list[str]:
    mutated = set(ep.graph_signature.buffers_to_mutate.values())
    return [s.target for s in ep.graph_signature.input_specs if s.target in mutated]


def _refuse_mutated_inputs(ep: ExportedProgram) -> None:
    names = list(ep.graph_signature.user_inputs_to_mutate.values())
    if names:
        raise ModelImportError(
            f"the model writes into its input {names[0]!r} in place; clone it first in forward, "
            "or return the new value as an output"
        )


def _spec(name: str, ty: relax.TensorType) -> TensorSpec:
    sizes = [int(s) if isinstance(s, tvm.tirx.IntImm) else str(s) for s in ty.shape.values]
    return TensorSpec(name, tuple(sizes), str(ty.dtype))


def _meta(main: relax.Function, ep: ExportedProgram, sig: _Signature, T: int | None) -> dict:
    names = [*sig.inputs.values(), *sig.states.values()]
    inputs = [_spec(n, p.ty) for n, p in zip(names, main.params, strict=False)]
    ret = main.ret_ty
    types = list(ret.fields) if isinstance(ret, relax.TupleType) else [ret]
    states = list(sig.states.values())
    user = len(types) - len(states)
    out_names = ["output"] if user == 1 else [f"output_{i}" for i in range(user)]
    outputs = [_spec(n, ty) for n, ty in zip([*out_names, *states], types, strict=True)]
    state = []
    for i, (placeholder, name) in enumerate(sig.states.items()):
        value = sig.values[placeholder]
        before, after = inputs[len(sig.inputs) + i], outputs[user + i]
        if before.shape != after.shape:
            raise ModelImportError(
                f"state {name!r} changes its shape from {before.shape} to {after.shape}; register "
                "it as a buffer of its full shape"
            )
        state.append({"input": name, "output": user + i, "initial": _initial(name, value)})
    return {
        "inputs": [s.to_json() for s in inputs],
        "outputs": [s.to_json() for s in outputs],
        "state": state,
        "T": T,
        "buffers": sig.buffers,
    }
