"""ScheduleContractions: decide how each tensor-train layer is contracted."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Protocol

import networkx as nx
import numpy as np
import tvm
from tvm import relax

from ttsnn.errors import PassError
from ttsnn.ops import make_call, tt_conv_attrs_of
from ttsnn.passes.contraction import (
    chain_of,
    contraction_graph,
    form_text,
    forms_of,
    parse_form,
)
from ttsnn.passes.cpu.layer_config import Stage
from ttsnn.passes.rewriter import BindingRewriter, prune
from ttsnn.passes.shapes import dims
from ttsnn.passes.static_values import op_name
from ttsnn.program import layer_name
from ttsnn.tt import reconstruct_linear

__all__ = ["CostModel", "ScheduleContractions"]


class CostModel(Protocol):
    """What a target says about the time that contractions take, in any one unit."""

    def stage(self, stage: Stage) -> float:
        """One stage of a convolution, for one image and timestep."""

    def matmul(self, rows: int, depth: int, columns: int) -> float:
        """One product [rows, depth] · [depth, columns] outside a fused layer."""


@tvm.transform.module_pass(opt_level=0, name="ScheduleContractions")
class ScheduleContractions:
    """Choose the form of every TT layer by the target's cost model.

    ``tt.conv2d`` gets the attribute ``form`` (:mod:`ttsnn.passes.contraction`): ``kind=form``
    for each kind of timestep, joined by ``;``. ``tt.linear`` whose cores cost more than the
    dense product becomes ``matmul`` by the merged weight [n, m]; else it stays.

    Args:
        cost: the target's cost model; the cheapest form wins, of equals the least merged.
        force: form of all TT convolutions, or of those named (layer → form) in place of the
            cheapest: a form, ``chain`` or ``dense``; several kinds as ``ptt=…;half=…``. For
            ``tt.linear`` ``chain`` or ``dense``.
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

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr:
        if op_name(value) == "relax.tt.conv2d":
            return self._conv(value)
        if op_name(value) == "relax.tt.linear":
            return self._linear(value)
        return self.get(value)

    def _conv(self, call: relax.Call) -> relax.Expr:
        size = dims(call.args[0])
        cores = [self.static(a) for a in call.args[1:5]]
        if any(c is None for c in cores) or not all(isinstance(d, int) for d in size[-2:]):
            return self.get(call)
        attrs = tt_conv_attrs_of(call)
        kinds = {"stt": ["stt"], "ptt": ["ptt"], "htt": ["ptt", "half"]}[attrs.mode]
        wanted = self._forced(self._layer(call.args[1]))
        chosen = []
        for kind in kinds:
            chain = chain_of(kind, attrs, cores, tuple(size[-2:]))
            if _for_kind(wanted, kind) is not None:
                form = parse_form(_for_kind(wanted, kind), kind)
            else:
                form = min(forms_of(kind), key=lambda f: self._cost_of(contraction_graph(chain, f)))
            chosen.append(f"{kind}={form_text(form)}")
        args = [self.get(a) for a in call.args]
        given = attrs.to_dict() | {"form": ";".join(chosen)}
        return make_call(call.op.name, args, given)

    def _cost_of(self, graph: nx.DiGraph) -> float:
        return sum(self.cost.stage(graph.nodes[n]["stage"]) for n in nx.topological_sort(graph))

    def _linear(self, call: relax.Call) -> relax.Expr:
        cores = [self.static(a) for a in call.args[1:]]
        if any(c is None for c in cores):
            return self.get(call)
        name = self._layer(call.args[1]).removesuffix(".cores")
        wanted = self._forced(name)
        ins, outs = prod(c.shape[2] for c in cores), prod(c.shape[1] for c in cores)
        if wanted is None:
            dense = self.cost.matmul(1, ins, outs)
            wanted = "dense" if dense <= self._linear_chain_cost(cores) else "chain"
        if wanted == "chain":
            return self.get(call)
        if wanted != "dense":
            raise PassError(f"layer {name}: tt.linear has forms chain and dense, not {wanted!r}")
        weight = reconstruct_linear([c.astype(np.float64) for c in cores]).T
        merged = self.fresh_param(f"{name}.weight_merged", weight.astype(cores[0].dtype))
        return relax.op.matmul(self.get(call.args[0]), merged)

    def _linear_chain_cost(self, cores: list[np.ndarray]) -> float:
        """Core by core from the first: the index m_k grows where n_k is summed away."""
        total, done = 0.0, 1
        left = prod(c.shape[2] for c in cores)
        for core in cores:
            r, m, n, r_next = core.shape
            left //= n
            total += self.cost.matmul(done * left, r * n, m * r_next)
            done *= m
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
