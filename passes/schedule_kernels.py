"""ScheduleKernels: every kernel gets a schedule from the first rule that wants it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from math import prod

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.stmt import SBlock

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.layers.config import LayerConfig
from ttsnn.passes.layers.signature import CONFIG_ATTR
from ttsnn.passes.module_pass import ModulePass

__all__ = ["FALLBACK", "LAYERS", "MACS", "RULE", "Rule", "ScheduleKernels", "product_macs"]

Rule = Callable[[tirx.PrimFunc, tvm.target.Target], Schedule | None]
RULE, MACS, LAYERS = "ttsnn.rule", "ttsnn.macs", "ttsnn.layers"
FALLBACK = "fallback"


@tvm.transform.module_pass(opt_level=0, name="ScheduleKernels")
class ScheduleKernels(ModulePass):
    """Schedule every ``PrimFunc``: rules are asked in order, the first that answers wins.

    The functions are marked ``tirx.is_scheduled`` and carry ``ttsnn.rule`` (the rule's name),
    ``ttsnn.macs`` (multiply-accumulates of one call, with one image where the batch is
    symbolic) and ``ttsnn.layers``. A kernel that only the fallback wants is reported by a
    warning: it is right, and slow.

    Args:
        rules: (name, rule) pairs; the last accepts everything.
        target: the CPU.
    """

    def __init__(self, rules: Sequence[tuple[str, Rule]], target: tvm.target.Target) -> None:
        self.rules = list(rules)
        self.target = target

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        out = tvm.IRModule(dict(mod.functions_items()), attrs=mod.attrs)
        for gvar, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and RULE not in (func.attrs or {}):
                out.update_func(gvar, self._schedule(gvar.name_hint, func))
        return out

    def _schedule(self, name: str, func: tirx.PrimFunc) -> tirx.PrimFunc:
        for rule_name, rule in self.rules:
            sch = rule(func, self.target)
            if sch is None:
                continue
            if rule_name == FALLBACK:
                warnings.warn(
                    f"kernel {name}: no schedule rule fits, it runs as plain loops (slow)",
                    stacklevel=2,
                )
            (scheduled,) = (f for _, f in sch.mod.functions_items())
            for key, value in func.attrs.items():
                if scheduled.attrs is None or key not in scheduled.attrs:
                    scheduled = scheduled.with_attr(key, value)
            macs, layers = _work(func)
            scheduled = scheduled.with_attr("tirx.is_scheduled", True).with_attr(RULE, rule_name)
            scheduled = scheduled.with_attr(MACS, macs).with_attr(LAYERS, layers)
            if func.attrs is None or "global_symbol" not in func.attrs:
                scheduled = scheduled.without_attr("global_symbol")
            return scheduled
        raise AssertionError("the last rule accepts every function")


def _work(func: tirx.PrimFunc) -> tuple[int, list[str]]:
    """Multiply-accumulates, and names of the layers that a kernel belongs to."""
    if CONFIG_ATTR in (func.attrs or {}):
        config = LayerConfig.from_json(str(func.attrs[CONFIG_ATTR]))
        batch = func.params[0].shape[1]
        images = int(batch) if isinstance(batch, tirx.IntImm) else 1
        return images * layer_macs(config), [config.name]
    return product_macs(func), []


def layer_macs(config: LayerConfig) -> int:
    """Multiply-accumulates of a layer for one image, all timesteps that it computes."""
    full, half = (sum(map(stage_macs, c)) for c in (config.stages, config.half_stages))
    if not config.half_stages:
        return full * config.x_T
    if config.x_T == 1:
        return full * (config.timesteps > 0) + half * (config.timesteps < config.T)
    return full * config.timesteps + half * (config.T - config.timesteps)


def product_macs(func: tirx.PrimFunc) -> int:
    """Iterations of blocks that add products up; symbolic sizes count as 1."""
    total = 0

    def visit(node) -> None:
        nonlocal total
        if node.init is None:
            return
        body = node.body
        if not isinstance(body, tirx.BufferStore) or not isinstance(body.value, tirx.Add):
            return
        if isinstance(body.value.b, tirx.Mul):
            extents = [v.dom.extent for v in node.iter_vars]
            total += prod(int(e) if isinstance(e, tirx.IntImm) else 1 for e in extents)

    tvm_ffi.structural_walk(func.body, (SBlock, visit))
    return total
