"""ONNX files → programs.

Standard operators go through TVM's ONNX importer; functions of the domain ``ttsnn`` become the
operators that they were written from, other functions are inlined first.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.sym import Analyzer

from ttsnn import ops
from ttsnn.errors import ModelImportError, TTSNNError
from ttsnn.frontend.describe import quiet
from ttsnn.frontend.onnx_graph import DOMAIN, require_onnx
from ttsnn.lif_attrs import LifAttrs
from ttsnn.ops.types import dims, known_dims
from ttsnn.program import make_program
from ttsnn.specs import TensorSpec

__all__ = ["import_onnx"]

_KINDS = ("lif", "tt_conv2d", "tt_linear", "conv2d", "avg_pool2d")


def import_onnx(
    path: str | os.PathLike[str], *, dynamic_batch: bool = False, dtype: str | None = None
) -> tvm.IRModule:
    """Import an ONNX file; see :func:`ttsnn.frontend.import_model`.

    Raises:
        ModelImportError: missing, truncated or malformed file; unsupported operators, all named;
            a fixed batch where ``dynamic_batch`` asks for a symbolic one; another dtype.
    """
    path = Path(path)
    model = _prepared(_load(path), path)
    _check_inputs(model, path, dynamic_batch, dtype)
    func, params, steps = _translate(model, path)
    mod = relax.transform.DeadCodeElimination(["main"])(make_program(func, params))
    meta = _meta(mod["main"], model, steps)
    return mod.with_attr("ttsnn.meta", json.dumps(meta))


def _load(path: Path) -> Any:
    onnx = require_onnx()
    if not path.is_file():
        raise ModelImportError(f"{path}: no such file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(model)
    except Exception as err:
        first = next((line for line in str(err).splitlines() if line.strip()), "")
        raise ModelImportError(
            f"{path}: damaged, or not an ONNX model ({type(err).__name__}: {first.strip()[:300]}); "
            "export the model again"
        ) from None
    return model


def _prepared(model: Any, path: Path) -> Any:
    """Our functions' calls renamed ``ttsnn::kind`` with all their settings, others inlined."""
    onnx = require_onnx()
    ours = {f.name: f for f in model.functions if f.domain == DOMAIN and _kind(f.name)}
    others = [(f.domain, f.name) for f in model.functions if f.name not in ours]
    if others:
        try:
            model = onnx.inliner.inline_selected_functions(model, others, exclude=False)
        except Exception as err:
            raise ModelImportError(f"{path}: its functions cannot be inlined ({err})") from None
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in ours:
            given = {a.name for a in node.attribute}
            defaults = ours[node.op_type].attribute_proto
            node.attribute.extend(a for a in defaults if a.name not in given)
            node.op_type = f"{DOMAIN}::{_kind(node.op_type)}"
    symbols = {
        d.dim_param for i in model.graph.input for d in i.type.tensor_type.shape.dim if d.dim_param
    }
    if len(symbols) == 1:
        for i in model.graph.input:
            for d in i.type.tensor_type.shape.dim:
                if d.dim_param:
                    d.dim_param = "n"
    return model


def _kind(name: str) -> str | None:
    kind = name.rpartition("_")[0]
    return kind if kind in _KINDS else None


def _check_inputs(model: Any, path: Path, dynamic_batch: bool, dtype: str | None) -> None:
    onnx = require_onnx()
    initial = {i.name for i in model.graph.initializer}
    symbolic, floats = False, set()
    for value in model.graph.input:
        if value.name in initial:
            continue
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise ModelImportError(f"{path}: input {value.name!r} has no shape; export it with one")
        for d in tensor.shape.dim:
            if not d.dim_param and not d.HasField("dim_value"):
                raise ModelImportError(
                    f"{path}: a size of input {value.name!r} has no name; name it when exporting"
                )
            symbolic |= bool(d.dim_param)
        kind = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        if kind.startswith("float"):
            floats.add(kind)
    if dynamic_batch and not symbolic:
        raise ModelImportError(
            f"{path} was exported with a fixed batch size; export it with dynamic_batch=True, or "
            "import it without"
        )
    if dtype is not None and floats and floats != {dtype}:
        raise ModelImportError(
            f"{path} is {', '.join(sorted(floats))}, not {dtype}; export the model again as {dtype}"
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with quiet(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _translate(model: Any, path: Path) -> tuple[relax.Function, dict[str, np.ndarray], set[int]]:
    importer = _importer_class()()
    importer.ours = model.producer_name == "ttsnn"
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    try:
        with _silent():
            mod = importer.from_onnx(model.graph, opset)
    except Exception as err:
        importer.abandon()
        if isinstance(err, TTSNNError):
            raise ModelImportError(f"{path}: {err}") from None
        first = next((line for line in str(err).splitlines() if line.strip()), "")
        raise ModelImportError(
            f"{path}: cannot be imported ({type(err).__name__}: {first.strip()[:300]})"
        ) from None
    main = mod["main"]
    used = set(relax.analysis.free_vars(main.body))
    count = int(main.attrs["num_input"])
    values = {var: (name, value) for name, (var, value) in importer.named.items()}
    params = {}
    kept = []
    for var in main.params[count:]:
        if var in used:
            name, value = values[var]
            params[name] = value
            kept.append(var)
    func = relax.Function([*main.params[:count], *kept], main.body)
    func = func.with_attrs({"global_symbol": "main", "num_input": count})
    return func, params, importer.steps


def _importer_class() -> type:
    """TVM's importer with our operators, our errors, and parameters by their own names."""
    from tvm.relax.frontend.onnx import onnx_frontend

    class Importer(onnx_frontend.ONNXGraphImporter):
        def __init__(self) -> None:
            super().__init__({}, {}, keep_params_in_input=True, sanitize=True)
            self.named: dict[str, tuple[relax.Var, np.ndarray]] = {}
            self.steps: set[int] = set()
            self.ours = False  # our files have parameters alone as initialisers

        def abandon(self) -> None:
            """Close what an error left open, or the block builder complains on the console."""
            for _ in range(3):
                try:
                    self.bb._end_block()
                except Exception:
                    return

        def _parse_graph_initializers(self, graph: Any) -> None:
            for tensor in graph.initializer:
                array = require_onnx().numpy_helper.to_array(tensor)
                if array.dtype.kind != "f" or (array.ndim == 0 and not self.ours):
                    self._nodes[tensor.name] = relax.const(array, str(array.dtype))
                    continue
                ty = relax.TensorType(array.shape, str(array.dtype))
                var = relax.Var(tensor.name.replace(".", "_").replace(":", "_"), ty)
                self._nodes[tensor.name] = var
                self._params[var.name] = (var, tvm.runtime.tensor(array))
                self.named[tensor.name] = (var, array)

        def _check_for_unsupported_ops(self, graph: Any) -> None:
            known = {*onnx_frontend._get_convert_map(), *_CONVERTERS, "Constant"}
            bad: dict[str, list[str]] = {}
            for node in graph.node:
                if node.op_type not in known or node.domain not in ("", "ai.onnx", DOMAIN):
                    bad.setdefault(node.op_type, []).append(node.name or node.output[0])
            if bad:
                lines = "\n".join(f"  - {k} in node {', '.join(v[:3])}" for k, v in bad.items())
                noun = "operator" if len(bad) == 1 else "operators"
                raise ModelImportError(
                    f"{len(bad)} {noun} cannot be imported:\n{lines}\n"
                    "Replace them in the model, or export it again"
                )

        def _convert_operator(self, op_name: str, inputs: Any, attrs: dict, opset: int) -> Any:
            where = attrs["tvm_custom"]["name"]
            # ONNX keeps these in float32: 1e-5 comes as 9.9999997e-06
            attrs = {
                k: float(str(np.float32(v))) if isinstance(v, float) else v
                for k, v in attrs.items()
            }
            try:
                if op_name in _CONVERTERS:
                    result = _CONVERTERS[op_name](self, list(inputs), _plain(attrs))
                    return self.bb.normalize(result)
                if op_name in _STANDARD:
                    result = _STANDARD[op_name](self, list(inputs), _plain(attrs))
                    if result is not None:
                        return result
                return super()._convert_operator(op_name, inputs, attrs, opset)
            except Exception as err:
                lines = [ln.strip() for ln in str(err).splitlines() if ln.strip()]
                why = lines[0] if lines else type(err).__name__
                kind = op_name.replace("::", ".")
                raise ModelImportError(
                    f"{kind} in node {where!r} cannot be imported: {why[:300]}"
                ) from None

    return Importer


def _plain(attrs: dict) -> dict:
    out = {k: v for k, v in attrs.items() if k != "tvm_custom"}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in out.items()}


def _lif(importer: Any, inputs: list[Any], attrs: dict) -> relax.Expr:
    x, *rest = inputs
    if "settings" in attrs:  # in full precision
        a = LifAttrs.from_dict(json.loads(attrs["settings"]))
    else:
        known = {f.name for f in fields(LifAttrs)}
        a = LifAttrs.from_dict({k: v for k, v in attrs.items() if k in known})
    sizes = known_dims("snn.lif", "x", x.ty)
    if attrs.get("has_v0"):
        v0, *rest = rest
    else:
        v0 = relax.op.zeros(relax.ShapeExpr(sizes[1:]), str(x.ty.dtype))
    given = {
        k: v for k, v in a.to_dict().items() if k not in ("decay_operand", "threshold_operand")
    }
    if a.decay_operand:
        given["decay"] = rest.pop(0)
    if a.threshold_operand:
        given["v_threshold"] = rest.pop(0)
    importer.steps.add(int(sizes[0]))
    out = importer.bb.emit(ops.lif(x, importer.bb.emit(v0), **given))
    return relax.Tuple([importer.bb.emit(out[0]), importer.bb.emit(out[1])])


def _tt_conv2d(importer: Any, inputs: list[Any], attrs: dict) -> relax.Expr:
    return importer.bb.emit(ops.tt_conv2d(*inputs, **attrs))


def _tt_linear(importer: Any, inputs: list[Any], attrs: dict) -> relax.Expr:
    return importer.bb.emit(ops.tt_linear(*inputs))


def _conv2d(importer: Any, inputs: list[Any], attrs: dict) -> relax.Expr:
    return importer.bb.emit(relax.op.nn.conv2d(*inputs, **attrs))


def _avg_pool2d(importer: Any, inputs: list[Any], attrs: dict) -> relax.Expr:
    return importer.bb.emit(relax.op.nn.avg_pool2d(*inputs, count_include_pad=True, **attrs))


def _expand(importer: Any, inputs: list[Any], attrs: dict) -> relax.Expr | None:
    """ONNX Expand keeps a size where the shape says 1; TVM's own fails on symbolic sizes."""
    x, shape = inputs
    old = dims(x.ty)
    if not isinstance(shape, tvm.ir.GenericConst) or old is None:
        return None
    new = [int(s) for s in shape.value.numpy()]
    rank = max(len(old), len(new))
    old, new = [1] * (rank - len(old)) + old, [1] * (rank - len(new)) + new
    target = [o if n == 1 else n for o, n in zip(old, new, strict=True)]
    return importer.bb.emit(relax.op.broadcast_to(x, relax.ShapeExpr(target)))


def _reshape(importer: Any, inputs: list[Any], attrs: dict) -> relax.Expr | None:
    """Reshape with the unknown size worked out, so that ``n`` stays simple."""
    x, shape = inputs
    old = dims(x.ty)
    if not isinstance(shape, tvm.ir.GenericConst) or old is None:
        return None
    new = [int(s) for s in shape.value.numpy()]
    if attrs.get("allowzero"):
        return None
    target: list[Any] = [old[i] if s == 0 else s for i, s in enumerate(new)]
    if -1 in new:
        total, known = _product(old), _product([s for s, n in zip(target, new) if n != -1])
        size = tvm.tirx.floordiv(tvm.runtime.convert(total), tvm.runtime.convert(known))
        target[new.index(-1)] = Analyzer().simplify(size)
    return importer.bb.emit(relax.op.reshape(x, relax.ShapeExpr(target)))


def _product(sizes: list[Any]) -> Any:
    total: Any = 1
    for s in sizes:
        total = total * s
    return total


# Standard operators; a converter that returns None leaves the case to TVM's own.
_STANDARD = {"Expand": _expand, "Reshape": _reshape}

_CONVERTERS = {
    "ttsnn::lif": _lif,
    "ttsnn::tt_conv2d": _tt_conv2d,
    "ttsnn::tt_linear": _tt_linear,
    "ttsnn::conv2d": _conv2d,
    "ttsnn::avg_pool2d": _avg_pool2d,
}


def _spec(name: str, ty: relax.TensorType) -> dict:
    sizes = dims(ty)
    if sizes is None:
        raise ModelImportError(f"the shape of {name!r} depends on data; export it with a fixed one")
    shape = tuple(s if isinstance(s, int) else str(s) for s in sizes)
    return TensorSpec(name, shape, str(ty.dtype)).to_json()


def _meta(main: relax.Function, model: Any, steps: set[int]) -> dict:
    initial = {i.name for i in model.graph.initializer}
    names = [i.name for i in model.graph.input if i.name not in initial]
    types = list(main.ret_ty.fields) if isinstance(main.ret_ty, relax.TupleType) else [main.ret_ty]
    ours = {p.key: p.value for p in model.metadata_props}.get("ttsnn.meta")
    known = json.loads(ours) if ours else {}
    state = [s for s in known.get("state", []) if s["input"] in names and s["output"] < len(types)]
    outs = [o.name for o in model.graph.output]
    for s in state:
        outs[s["output"]] = s["input"]
    return {
        "inputs": [_spec(n, p.ty) for n, p in zip(names, main.params, strict=False)],
        "outputs": [_spec(n, ty) for n, ty in zip(outs, types, strict=True)],
        "state": state,
        "T": next(iter(steps)) if len(steps) == 1 else known.get("T"),
        "buffers": known.get("buffers", []),
        **{k: known[k] for k in ("batch_axis",) if k in known},
    }
