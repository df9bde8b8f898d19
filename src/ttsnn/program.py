"""Relax modules that carry the values of their parameters.

A program is an ``IRModule`` whose function ``main(inputs…, parameters…)`` has the function
attribute ``num_input`` (how many leading arguments are inputs), and which carries the module
attribute ``ttsnn.params``: an ordered map from parameter name to tensor, one entry for each
parameter of ``main``, in their order. Names are those of the PyTorch ``state_dict``
(``layer1.0.conv1.weight``; cores are ``layer1.0.conv1.g1`` …).

Passes stay ``IRModule -> IRModule``: one that changes parameters derives from
:class:`ParamMutator`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator

__all__ = [
    "PARAMS",
    "ParamMutator",
    "layer_name",
    "make_program",
    "num_inputs",
    "param_names",
    "params_of",
    "with_params",
]

PARAMS = "ttsnn.params"


def params_of(mod: tvm.IRModule) -> dict[str, np.ndarray]:
    """Values of the parameters of ``main``, in the order of its arguments (views, no copies)."""
    if mod.attrs is None or PARAMS not in mod.attrs:
        return {}
    return {str(k): v.numpy() for k, v in mod.attrs[PARAMS].items()}


def with_params(mod: tvm.IRModule, params: Mapping[str, np.ndarray]) -> tvm.IRModule:
    """The module with its parameters' values replaced; order must follow ``main``'s arguments."""
    tensors = {k: tvm.runtime.tensor(np.asarray(v, order="C")) for k, v in params.items()}
    return mod.with_attr(PARAMS, tensors)


def num_inputs(func: relax.Function) -> int:
    """How many of the function's leading arguments are inputs rather than parameters."""
    if func.attrs is None or "num_input" not in func.attrs:
        return len(func.params)
    return int(func.attrs["num_input"])


def param_names(mod: tvm.IRModule) -> dict[relax.Var, str]:
    """Parameter variable of ``main`` → its full name."""
    main = mod["main"]
    return dict(zip(main.params[num_inputs(main) :], params_of(mod), strict=True))


def layer_name(param_name: str) -> str:
    """Name of the layer that owns a parameter: ``layer1.0.conv1.weight`` → ``layer1.0.conv1``."""
    return param_name.rpartition(".")[0]


def make_program(func: relax.Function, params: Mapping[str, np.ndarray]) -> tvm.IRModule:
    """Wrap one Relax function and its parameters' values as a program."""
    return with_params(tvm.IRModule({"main": func}), params)


class ParamMutator(PyExprMutator):
    """Base of passes that rewrite ``main`` together with its parameters.

    Override the ``visit_*_`` methods; inside them use :meth:`value` and :meth:`add_param`.
    :meth:`run` rebuilds ``main``: parameters that nothing uses any more are dropped, new ones
    are appended after the kept ones, and ``ttsnn.params`` follows.
    """

    def __init__(self, mod: tvm.IRModule) -> None:
        super().__init__(mod)
        self.mod = mod
        self._values = params_of(mod)
        self._names = param_names(mod)
        self._new: dict[str, relax.Var] = {}

    def name_of(self, expr: relax.Expr) -> str | None:
        """Full name of a parameter, or None where ``expr`` is no parameter of ``main``."""
        return self._names.get(expr) if isinstance(expr, relax.Var) else None

    def value(self, expr: relax.Expr) -> np.ndarray | None:
        """Value of a parameter or a constant; None where it is known at run time only."""
        if isinstance(expr, tvm.ir.GenericConst):
            return np.asarray(expr.value.numpy())
        name = self.name_of(expr)
        return None if name is None else self._values[name]

    def add_param(self, name: str, value: np.ndarray) -> relax.Var:
        """A new parameter of ``main``. The same name twice returns the same variable."""
        if name in self._new:
            return self._new[name]
        if name in self._values:
            raise ValueError(f"parameter {name!r} exists already")
        value = np.asarray(value, order="C")
        ty = relax.TensorType(value.shape, str(value.dtype))
        var = relax.Var(name.replace(".", "_"), ty)
        self._new[name] = var
        self._names[var] = name
        self._values[name] = value
        return var

    def run(self) -> tvm.IRModule:
        """Rewrite ``main`` and return the new module."""
        main = self.mod["main"]
        count = num_inputs(main)
        body = self.visit_expr(main.body)
        used = set(relax.analysis.free_vars(body))
        kept = [v for v in [*main.params[count:], *self._new.values()] if v in used]
        inputs = list(main.params[:count])
        func = relax.Function([*inputs, *kept], body, attrs=main.attrs)
        out = tvm.IRModule(dict(self.mod.functions_items()), attrs=self.mod.attrs)
        gv = self.mod.get_global_var("main")
        out.update_func(gv, func)
        return with_params(out, {self._names[v]: self._values[self._names[v]] for v in kept})
