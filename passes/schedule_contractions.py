"""ScheduleContractions: decide how each tensor-train layer is contracted."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Protocol

import networkx as nx
import numpy as np
import tvm
from tvm import relax

from ttsnn.ops import make_call, tt_conv_attrs_of
from ttsnn.passes.contraction import (
    Form,
    chain_of,
    contraction_graph,
    form_text,
    forms_of,
    parse_form,
)
from ttsnn.passes.layers.config import Stage
from ttsnn.passes.linear_chain import (
    linear_forms,
    linear_steps,
    merge_cores,
    parse_linear_form,
)
from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import dims, known_dims
from ttsnn.passes.static_values import op_name
from ttsnn.program import layer_name
from ttsnn.tt import reconstruct_linear

__all__ = ["CostModel", "ScheduleContractions"]


class CostModel(Protocol):
    """What a target says about the time that contractions take, in any one unit."""

    def stage(self, stage: Stage) -> float:
        """One stage of a convolution, for one image and timestep."""

    def matmul(self, rows: int, depth: int, columns: int) -> float:
        """One product [rows, depth] · [depth, columns] as a kernel of its own."""

    def permute(self, elements: int) -> float:
        """A transpose of so many elements in memory."""


@tvm.transform.module_pass(opt_level=0, name="ScheduleContractions")
class ScheduleContractions(ModulePass):
    """Choose the form of every TT layer by the target's cost model.

    ``tt.conv2d`` gets the attribute ``form`` (:mod:`ttsnn.passes.contraction`): ``kind=form``
    for each kind of timestep, joined by ``;``. ``tt.linear`` becomes what it is computed by:
    ``matmul`` by the merged weight [n, m], or a transpose and ``matmul`` for each core or group
    of neighbouring cores (:mod:`ttsnn.passes.linear_chain`). Rows with a symbolic size count as
    one for each timestep.

    Args:
        cost: the target's cost model; the cheapest form wins, of equals the least merged.
        force: form of all TT convolutions, or of those named (layer → form) in place of the
            cheapest: a form, ``chain`` or ``dense``; several kinds as ``ptt=…;half=…``. Cores of
            ``tt.linear`` are called 0, 1, …: ``0*1|2``.
    """

    def __init__(self, cost: CostModel, force: str | Mapping[str, str] | None = None) -> None:
        self.cost = cost
        self.force = force

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(_Chooser(mod, self.cost, self.force).run())


class _Chooser(BindingRewriter):
    def __init__(self, mod, cost: CostModel, force: str | Mapping[str, str] | None) -> None:
        super().__init__(mod)
        self.cost = cost
        self.force = force
        self._merged: dict[relax.Expr, tuple[str, np.ndarray]] = {}  # tt.linear → name, weight

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if op_name(value) == "relax.tt.conv2d":
            return self._conv(value)
        if op_name(value) == "relax.tt.linear":
            return self._linear(value)
        if op_name(value) == "relax.multiply":
            return self._scaled(value)
        return self.get(value)

    def _conv(self, call: relax.Call) -> relax.Expr:
        size = dims(call.args[0])
        cores = self.static.all(call.args[1:5])
        if cores is None or size is None or not all(isinstance(d, int) for d in size[-2:]):
            return self.get(call)
        attrs = tt_conv_attrs_of(call)
        kinds = {"stt": ["stt"], "ptt": ["ptt"], "htt": ["ptt", "half"]}[attrs.mode]
        wanted = self._forced(self._layer(call.args[1]))
        chosen = []
        for kind in kinds:
            chain = chain_of(kind, attrs, cores, tuple(size[-2:]))
            text = _for_kind(wanted, kind)
            if text is not None:
                form = parse_form(text, kind)
            else:
                form = min(forms_of(kind), key=lambda f: self._cost_of(contraction_graph(chain, f)))
            chosen.append(f"{kind}={form_text(form)}")
        args = [self.get(a) for a in call.args]
        given = attrs.to_dict() | {"form": ";".join(chosen)}
        return make_call(call.op.name, args, given)

    def _cost_of(self, graph: nx.DiGraph) -> float:
        return sum(self.cost.stage(graph.nodes[n]["stage"]) for n in nx.topological_sort(graph))

    def _linear(self, call: relax.Call) -> relax.Expr:
        cores = self.static.all(call.args[1:])
        sizes = dims(call.args[0])
        if cores is None or sizes is None:
            return self.get(call)
        name = self._layer(call.args[1]).removesuffix(".cores")
        rows = prod(s for s in sizes[:-1] if isinstance(s, int))
        wanted = self._forced(name)
        if wanted is None:
            form = min(linear_forms(len(cores)), key=lambda f: self._linear_cost(cores, f, rows))
        else:
            form = parse_linear_form(wanted, len(cores), name)
        x, dtype = self.get(call.args[0]), cores[0].dtype
        if len(form) == 1:
            weight = reconstruct_linear([c.astype(np.float64) for c in cores]).T
            self._merged[call] = name, weight
            return relax.op.matmul(x, self._weight(name, weight, dtype))
        for i, step in enumerate(linear_steps(merge_cores(cores, form))):
            weight = self.fresh_param(f"{name}.chain{i}", step.weight.astype(dtype))
            x = self.emit(relax.op.reshape(x, relax.ShapeExpr(step.view(sizes[:-1]))))
            x = self.emit(relax.op.permute_dims(x, step.axes))
            x = self.emit(relax.op.reshape(x, relax.ShapeExpr(step.matrix(sizes[:-1]))))
            x = self.emit(relax.op.matmul(x, weight))
        return relax.op.reshape(x, relax.ShapeExpr(known_dims(call)))

    def _weight(self, name: str, value: np.ndarray, dtype: np.dtype) -> relax.Var:
        return self.fresh_param(f"{name}.weight_merged", value.astype(dtype))

    def _scaled(self, call: relax.Call) -> relax.Expr:
        """A merged weight takes the scale of a batch norm after it, which cores could not."""
        linear = self.definition(call.args[0])
        scale = self.static(call.args[1])
        if (
            linear is None
            or linear not in self._merged
            or self.uses[call.args[0]] != 1
            or scale is None
        ):
            return self.get(call)
        name, weight = self._merged[linear]
        if scale.size != weight.shape[1] or scale.shape[-1] != scale.size:
            return self.get(call)
        weight = weight * scale.reshape(-1).astype(np.float64)
        return relax.op.matmul(self.get(linear.args[0]), self._weight(name, weight, scale.dtype))

    def _linear_cost(self, cores: list[np.ndarray], form: Form, rows: int) -> float:
        ins, outs = prod(c.shape[2] for c in cores), prod(c.shape[1] for c in cores)
        if len(form) == 1:
            return self.cost.matmul(rows, ins, outs)
        # what follows, a scale and a neuron, does not fuse with a chain
        total = 2 * self.cost.matmul(rows, 0, outs)
        for step in linear_steps(merge_cores(cores, form)):
            depth, columns = step.weight.shape
            total += self.cost.permute(rows * step.others * depth)
            total += self.cost.matmul(rows * step.others, depth, columns)
        return total

    def _layer(self, param: relax.Expr) -> str:
        return layer_name(self.name_of(param) or "")

    def _forced(self, name: str) -> str | None:
        if self.force is None or isinstance(self.force, str):
            return self.force
        return self.force.get(name)


def _for_kind(wanted: str | None, kind: str) -> str | None:
    """The part of ``ptt=…;half=…`` for one kind; a text without ``=`` serves all kinds."""
    if wanted is None or "=" not in wanted:
        return wanted
    return dict(part.split("=", 1) for part in wanted.split(";")).get(kind)
