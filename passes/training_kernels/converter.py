"""The walk over a training program's function, and the two layouts of its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.passes.rewriter import bindings_of, use_counts
from ttsnn.passes.shapes import dims, known_dims
from ttsnn.passes.static_values import op_name
from ttsnn.passes.training_kernels.images import BatchNormGrad, Image, Lazy, Normalised

__all__ = ["Converter"]

_ZEROS = ("relax.zeros", "relax.zeros_like")


class Converter:
    """Rewrites one function binding by binding; a subclass converts the operators.

    Attributes:
        bound: variable → expression of the original function.
        uses: how often each variable of the original function is read.
        items: results of operators that have several.
        item_reads: (variable, index) of the results that something reads.
        lazy: values that their readers compute, until ``images`` has them.
        chains: what the links of tensor-train layers read, for the backward of the same
            function.
    """

    def __init__(self, bb: relax.BlockBuilder, kernels: Any, func: relax.Function) -> None:
        # a TrainingKernels; targets have one with more
        self.bb, self.k, self.func = bb, kernels, func
        self.bound = bindings_of(func)
        self.uses = use_counts(func)
        self.args = {p: relax.Var(p.name, p.ty) for p in func.params}
        self.plain: dict[relax.Var, relax.Expr] = dict(self.args)
        self.images: dict[relax.Var, Image] = {}
        self.lazy: dict[relax.Var, Lazy] = {}
        self.made: dict[tuple, relax.Var] = {}  # keys of lazy values that are computed
        self.compact: dict[relax.Var, str] = {}  # spikes as bytes → dtype of the program's
        self.wide: dict[relax.Var, relax.Var] = {}  # spikes as bytes → as that
        self.chains: dict[tuple, list[relax.Var]] = {}
        self.items: dict[relax.Var, list[Image | Lazy | relax.Expr | None]] = {}
        self.item_reads = {
            (v.tuple_value, v.index)
            for v in self.bound.values()
            if isinstance(v, relax.TupleGetItem)
        }

    # -- to override -------------------------------------------------------------------------

    def convert(self, var: relax.Var, value: relax.Expr) -> Image | list | relax.Expr | bool | None:
        """An operator's call, converted.

        Returns:
            An image, a list of results (images, lazy values, expressions, or None where
            nobody reads one), or an expression in the program's own layout; True where the
            tables are filled already; None where the call stays as it is.
        """
        raise NotImplementedError

    # -- the walk ----------------------------------------------------------------------------

    def emit(self, name: str) -> None:
        """Add the new function to the builder."""
        bb = self.bb
        with bb.function(name, list(self.args.values())):
            with bb.dataflow():
                for var, value in self.bound.items():
                    self._bind(var, value)
                out = bb.emit_output(self._result(self.func.body.body))
            bb.emit_func_output(out)

    def _result(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self._result(f) for f in expr.fields])
        if isinstance(expr, relax.Var) and isinstance(self.bound.get(expr), relax.Tuple):
            return self._result(self.bound[expr])
        return self.get(expr)

    def _bind(self, var: relax.Var, value: relax.Expr) -> None:
        if isinstance(value, relax.Var):
            self._alias(var, value)
        elif isinstance(value, relax.TupleGetItem):
            self._item(var, value)
        elif isinstance(value, relax.Tuple):
            pass  # read by _result, or by get
        else:
            done = self.convert(var, value)
            if isinstance(done, Image):
                self.images[var] = done
            elif isinstance(done, list):
                self.items[var] = done
            elif isinstance(done, relax.Expr):
                self.plain[var] = self.bind(done)
            elif done is None:
                self.plain[var] = self.bind(self._generic(value))

    def _alias(self, var: relax.Var, value: relax.Var) -> None:
        tables: tuple[dict[relax.Var, Any], ...] = (self.images, self.plain, self.lazy, self.items)
        for table in tables:
            if value in table:
                table[var] = table[value]

    def _item(self, var: relax.Var, value: relax.TupleGetItem) -> None:
        source = value.tuple_value
        if source in self.items:
            found = self.items[source][value.index]
            if isinstance(found, Image):
                self.images[var] = found
            elif isinstance(found, Lazy):
                self.lazy[var] = found
            elif found is not None:
                self.plain[var] = found
        elif isinstance(self.bound.get(source), relax.Tuple):
            self._bind(var, self.bound[source].fields[value.index])
        else:
            self.plain[var] = self.bind(relax.TupleGetItem(self.get(source), value.index))

    def bind(self, expr: relax.Expr) -> relax.Expr:
        """A name for an expression; a variable is returned as it is."""
        return expr if isinstance(expr, relax.Var) else self.bb.emit(expr)

    def _generic(self, call: relax.Expr) -> relax.Expr:
        if isinstance(call, relax.Call):
            return relax.Call(call.op, [self.get(a) for a in call.args], call.attrs, call.ty_args)
        return call

    def get(self, expr: relax.Expr) -> relax.Expr:
        """The value in the program's own layout."""
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.get(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            return self.bind(relax.TupleGetItem(self.get(expr.tuple_value), expr.index))
        if not isinstance(expr, relax.Var):
            return expr
        if expr not in self.plain:
            if isinstance(self.bound.get(expr), relax.Tuple):
                return self.get(self.bound[expr])
            if expr in self.items:
                fields = [self._plain_of(f) for f in self.items[expr]]
                self.plain[expr] = self.bind(relax.Tuple(fields))
            else:
                self.plain[expr] = self._plain_of(self.image(expr))
        return self.plain[expr]

    def _plain_of(self, value: Image | Lazy | relax.Expr | None) -> relax.Expr:
        if isinstance(value, Lazy):
            value = self.materialise(value)
        if not isinstance(value, Image):
            return value
        value = self._floats(value)
        r, h, w, c = value.sizes
        if h * w > 1 and c > 1:
            out = self.reshape(value.expr, (r, h, w, c))
            out = self.bind(relax.op.permute_dims(out, [0, 3, 1, 2]))
        else:
            out = value.expr
        return self.reshape(out, value.shape)

    def reshape(self, expr: relax.Expr, shape: Sequence[int]) -> relax.Expr:
        """Another shape, which costs nothing."""
        if tuple(known_dims(expr)) == tuple(shape):
            return expr
        return self.bind(relax.op.reshape(expr, [int(s) for s in shape]))

    def pending(self, expr: relax.Expr) -> Lazy | None:
        """The value, where it is one that its reader may still compute itself."""
        value = self.lazy.get(expr) if isinstance(expr, relax.Var) else None
        return value if value is not None and value.key not in self.made else None

    def image(self, expr: relax.Expr, compact: bool = False) -> Image | None:
        """The value channels last; None where it is no [(T,) N, C, H, W].

        Args:
            expr: the value.
            compact: whether spikes may be bytes.
        """
        if isinstance(expr, relax.Var) and expr in self.lazy and expr not in self.images:
            self.images[expr] = self.materialise(self.lazy[expr])
        if isinstance(expr, relax.Var) and expr in self.images:
            found = self.images[expr]
            return found if compact else self._floats(found)
        shape = dims(expr) if isinstance(getattr(expr, "ty", None), relax.TensorType) else None
        if shape is None or len(shape) not in (4, 5):
            return None
        *lead, c, h, w = shape
        out = self.get(expr)
        r = prod(lead)
        if h * w > 1 and c > 1:
            out = self.reshape(self.bind(out), (r, c, h, w))
            out = self.bind(relax.op.permute_dims(out, [0, 2, 3, 1]))
        image = Image(self.reshape(self.bind(out), (1, r, h, w, c)), tuple(lead))
        if isinstance(expr, relax.Var):
            self.images[expr] = image
        return image

    def _floats(self, image: Image) -> Image:
        """The same with spikes as numbers."""
        if image.expr not in self.compact:
            return image
        if image.expr not in self.wide:
            self.wide[image.expr] = self.bind(relax.op.astype(image.expr, self.compact[image.expr]))
        return replace(image, expr=self.wide[image.expr])

    def known_image(self, expr: relax.Expr, compact: bool = False) -> Image:
        """The value channels last, of an operator that takes nothing else; as :meth:`image`.

        Raises:
            PassError: where it is no [(T,) N, C, H, W].
        """
        image = self.image(expr, compact)
        if image is None:
            raise PassError(
                f"a training kernel needs [(T,) N, C, H, W], got {getattr(expr, 'ty', expr)}; "
                "reshape it in the network"
            )
        return image

    def is_image(self, expr: relax.Expr) -> bool:
        """Whether the value is held channels last (or would be, if it were wanted)."""
        return isinstance(expr, relax.Var) and (expr in self.images or expr in self.lazy)

    def materialise(self, value: Lazy) -> Image:
        """A lazy value computed after all."""
        if value.key not in self.made:
            if isinstance(value, Normalised):
                made = self.k.batch_norm_apply(value.x.expr, value.channel, value.side)
            elif isinstance(value, BatchNormGrad) and value.neuron is not None:
                made = self.k.lif_backward(value.neuron, value.args)[0]
            elif isinstance(value, BatchNormGrad):
                made = self.k.batch_norm_dx(value.x.expr, value.args)
            else:
                side = [] if value.side is None else [value.side]
                made = self.k.lif_backward(value.neuron, [*value.args, *side])[0]
            self.made[value.key] = made
        return replace(value.x, expr=self.made[value.key])

    def is_zero(self, expr: relax.Expr) -> bool:
        """Whether a value is zero for sure."""
        seen = self.bound.get(expr) if isinstance(expr, relax.Var) else expr
        while seen is not None and op_name(seen) in ("relax.reshape", "relax.broadcast_to"):
            inner = seen.args[0]
            seen = self.bound.get(inner) if isinstance(inner, relax.Var) else inner
        if isinstance(seen, tvm.ir.GenericConst):
            return not np.any(seen.value.numpy())
        return op_name(seen) in _ZEROS
