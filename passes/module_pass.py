"""Base of the classes that ``tvm.transform.module_pass`` decorates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import tvm

__all__ = ["ModulePass"]


class ModulePass:
    """A pass written as a class with ``transform_module(mod, context)``.

    TVM's decorator puts a callable ``tvm.transform.ModulePass`` around an instance. Type checkers
    do not follow a decorator that replaces a class, so the call is declared here for them.
    """

    if TYPE_CHECKING:

        def __call__(self, mod: tvm.IRModule) -> tvm.IRModule:
            """Apply the pass."""
