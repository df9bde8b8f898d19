"""Prune: what nothing uses goes away."""

from __future__ import annotations

import tvm

from ttsnn.passes.module_pass import ModulePass
from ttsnn.passes.rewriter import prune

__all__ = ["Prune"]


@tvm.transform.module_pass(opt_level=0, name="Prune")
class Prune(ModulePass):
    """Remove bindings and parameters that nothing uses, and bindings that only rename."""

    def transform_module(self, mod: tvm.IRModule, _ctx: tvm.transform.PassContext) -> tvm.IRModule:
        """Apply the pass."""
        return prune(mod)
