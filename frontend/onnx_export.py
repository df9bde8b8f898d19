"""Programs and PyTorch models as ONNX files that ONNX Runtime executes."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ttsnn.errors import ModelImportError
from ttsnn.frontend.files import write_atomically
from ttsnn.frontend.importer import import_model
from ttsnn.frontend.onnx_graph import (
    DOMAIN,
    IR_VERSION,
    OPSET,
    GraphBuilder,
    require_onnx,
    tensor_type,
)
from ttsnn.frontend.onnx_writers import WRITERS, Writer
from ttsnn.ops.types import dims
from ttsnn.program import num_inputs, params_of

__all__ = ["export_onnx", "program_to_onnx"]


def export_onnx(
    model: Any,
    path: str | os.PathLike[str],
    example: Any = None,
    dynamic_batch: bool = False,
    *,
    dtype: str | None = None,
) -> None:
    """Write a model as an ONNX file.

    Neurons and tensor-train layers become functions of the domain ``ttsnn`` whose bodies are
    standard operators of opset 20: ONNX Runtime executes the file, and :func:`import_model` reads
    the operators back. Parameters are initialisers with their ``state_dict`` names; batch norms
    stay operators, which ONNX Runtime folds.

    Args:
        model: anything that :func:`ttsnn.frontend.import_model` takes, or a program.
        path: file to write; it appears whole or not at all.
        example: example input of a module.
        dynamic_batch: whether the batch may vary; the axis is then named ``n``.
        dtype: ``"float32"`` or ``"float64"``, converts a module first. In float64 convolutions
            are written as matrix products, since ONNX Runtime has no float64 convolution: right,
            but slow.

    Raises:
        ModelImportError: the model cannot be imported, an operator has no ONNX form (all are
            named), or ``onnx`` is not installed.
    """
    require_onnx()
    mod = model
    if not isinstance(model, tvm.IRModule):
        mod = import_model(model, example=example, dynamic_batch=dynamic_batch, dtype=dtype)
    proto = program_to_onnx(mod)
    try:
        data = proto.SerializeToString()
    except Exception as err:  # protobuf refuses messages above 2 GiB
        raise ModelImportError(
            f"{path}: the model is too large for one ONNX file ({err})"
        ) from None
    write_atomically(path, data)


def program_to_onnx(mod: tvm.IRModule) -> Any:
    """A program (see :mod:`ttsnn.program`) as an ``onnx.ModelProto``."""
    onnx = require_onnx()
    main, values = mod["main"], params_of(mod)
    count = num_inputs(main)
    meta = json.loads(str(mod.attrs["ttsnn.meta"])) if "ttsnn.meta" in (mod.attrs or {}) else {}
    floats = [str(p.ty.dtype) for p in main.params if str(p.ty.dtype).startswith("float")]
    dtype = "float64" if "float64" in floats else "float32"
    builder = GraphBuilder(dtype)
    writer = Writer(builder)

    names = [s["name"] for s in meta.get("inputs", [])] or [p.name for p in main.params[:count]]
    # a state's next value needs a name of its own: ONNX names are unique in the graph
    outs = [s["name"] for s in meta.get("outputs", [])]
    outs = [f"{n}.next" if n in names else n for n in outs]
    for name in [*names, *values, *outs]:
        builder.name(name)
    for var, name in zip(main.params, [*names, *values], strict=True):
        writer.env[var] = name
        for axis, size in enumerate(dims(var.ty) or []):
            if isinstance(size, tvm.tirx.Var):
                writer.sizes.setdefault(size, (name, axis))
    result = _write_body(writer, main)
    types = list(main.ret_ty.fields) if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    outs = outs or [f"output_{i}" for i in range(len(types))]
    for got, name in zip(result, outs, strict=True):
        builder.nodes.append(onnx.helper.make_node("Identity", [got], [name]))

    graph = onnx.helper.make_graph(
        _needed(builder.nodes, outs),
        "main",
        [_value_info(onnx, n, p.ty) for n, p in zip(names, main.params, strict=False)],
        [_value_info(onnx, n, ty) for n, ty in zip(outs, types, strict=True)],
        [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in values.items()],
    )
    model = onnx.helper.make_model(
        graph,
        functions=writer.functions,
        opset_imports=[onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(DOMAIN, 1)],
        ir_version=IR_VERSION,
        producer_name="ttsnn",
    )
    onnx.helper.set_model_props(model, {"ttsnn.meta": json.dumps(meta)})
    return model


def _needed(nodes: list[Any], outputs: list[str]) -> list[Any]:
    """The nodes that the outputs depend on (a membrane's zero start is in the function)."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    return kept[::-1]


def _value_info(onnx: Any, name: str, ty: relax.TensorType) -> Any:
    shape = [s if isinstance(s, int) else str(s) for s in dims(ty) or []]
    return onnx.helper.make_tensor_value_info(name, tensor_type(str(ty.dtype)), shape)


def _write_body(writer: Writer, main: relax.Function) -> list[str]:
    problems: dict[str, None] = {}
    for block in main.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, tvm.ir.Call):
                kind = getattr(value.op, "name", str(value.op))
                if kind not in WRITERS:
                    problems[f"{kind.removeprefix('relax.')} {dims_text(binding.var)}"] = None
                    writer.env[binding.var] = "?"
                    continue
                if kind == "relax.zeros":
                    writer.zeros.add(binding.var)
                try:
                    writer.env[binding.var] = WRITERS[kind](writer, value)
                except ModelImportError as err:
                    problems[f"{kind.removeprefix('relax.')}: {err}"] = None
                    writer.env[binding.var] = "?"
            else:
                writer.env[binding.var] = writer.ref(value)
    if problems:
        lines = "\n".join(f"  - {p}" for p in problems)
        raise ModelImportError(
            f"{len(problems)} operators have no ONNX form:\n{lines}\n"
            "Replace them in the model, or save it as .pt2"
        )
    result = writer.ref(main.body.body)
    return result if isinstance(result, list) else [result]


def dims_text(var: relax.Var) -> str:
    """Shape of a value for a message."""
    shape = dims(var.ty) if isinstance(var.ty, relax.TensorType) else None
    return "" if shape is None else str([str(s) for s in shape]).replace("'", "")
