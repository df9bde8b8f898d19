"""Registering Relax operators from Python.

:func:`register_op` is safe to call again for the same operator, makes it known to the TVMScript
parser (``R.snn.lif`` prints and parses back), and lets the errors of :mod:`ttsnn.errors` travel
through TVM's C++ with their class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Op
from tvm.relax import script as _user_script
from tvm.relax.script import parser as _script

from ttsnn import errors

__all__ = ["make_call", "register_attr", "register_op"]

for _name in errors.__all__:
    tvm_ffi.register_error(_name, getattr(errors, _name))


def register_op(
    name: str,
    infer: Callable[[tvm.ir.Call, relax.BlockBuilder], tvm.ir.Type],
    arguments: Sequence[str],
    doc: str = "",
) -> Op:
    """Register a pure Relax operator and its type inference.

    Args:
        name: ``relax.<group>.<op>``; TVMScript shows ``R.<group>.<op>``.
        infer: ``(call, block builder) -> type``; raises :class:`ttsnn.errors.PassError`.
        arguments: names of the tensor operands; a name that ends with ``…`` may repeat or lack.
        doc: one line.

    Returns:
        The operator.
    """
    if name not in Op.list_op_names():
        tvm.ir._ffi_api.RegisterOp(name, doc)
        op = Op.get(name)
        variadic = any(a.endswith("…") for a in arguments)
        op.set_num_inputs(-1 if variadic else len(arguments))
        for arg in arguments:
            op.add_argument(arg, "Tensor", "")
    register_attr(name, "FInferType", infer)
    register_attr(name, "FPurity", True)
    _add_to_script(name)
    return Op.get(name)


def register_attr(name: str, key: str, value: Any) -> None:
    """Set an attribute of one of our operators; where it has one already, that stays."""
    if Op.get(name).get_attr(key) is None:
        tvm.ir.register_op_attr(name, key, value)


def make_call(name: str, args: Sequence[relax.Expr], attrs: dict[str, Any]) -> tvm.ir.Call:
    """A call of an operator; where the operands have types it is checked at once.

    Raises:
        PassError: from the operator's type inference.
    """
    call = relax.Call(Op.get(name), list(args), attrs)
    if all(isinstance(getattr(a, "ty", None), relax.TensorType) for a in args):
        Op.get(name).get_attr("FInferType")(call, None)
    return call


def _add_to_script(name: str) -> None:
    """Make ``R.<group>.<op>(operands…, attributes…)`` known to the TVMScript parser."""
    _, group, short = name.split(".")

    def call(*args: relax.Expr, **attrs: Any) -> tvm.ir.Call:
        return relax.Call(Op.get(name), list(args), attrs)

    call.__name__ = short
    # what R means in a script given as text, and in one that imports it
    for namespace in (_script, _user_script):
        if not hasattr(namespace, group):
            setattr(namespace, group, SimpleNamespace())
        setattr(getattr(namespace, group), short, call)
