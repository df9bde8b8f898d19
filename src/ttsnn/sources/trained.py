"""Weights of a file or a run, and the tensor trains that their cores belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ttsnn.errors import ModelImportError
from ttsnn.sources.inputs import input_of
from ttsnn.sources.same_plan import check_same
from ttsnn.sources.source import ModelOptions, ModelSource

if TYPE_CHECKING:
    from ttsnn.plans import TTPlan


def with_weights(name: str, module: Any, options: ModelOptions) -> tuple[Any, TTPlan | None]:
    """The network with the weights of a file or a run, in their dtype; tensor trains where those
    are cores.

    Raises:
        ModelImportError: they do not fit; cores of a plan that nobody says.
        PlanError: cores of another plan than the one that is asked for.
    """
    import torch

    from ttsnn.models import apply_plan
    from ttsnn.plans import TTPlan
    from ttsnn.weights import load_state, read_weights

    assert options.weights is not None
    found = read_weights(options.weights)
    plan = None if found.plan is None else TTPlan.from_json(found.plan)
    if plan is not None and options.plan is not None:
        check_same(plan, options.plan, options.mode, str(found.path))
    elif plan is None and found.cores and not any(k in module.state_dict() for k in found.cores):
        if options.plan is None:
            raise ModelImportError(
                f"{found.path}: holds tensor-train cores ({found.cores[0]} …); give the plan that "
                "they were trained with (--plan, --mode)"
            )
        plan = _made(name, module, options)
    if plan is not None:
        module = apply_plan(module, plan, init="fresh")
    floats = {v.dtype for v in found.state.values() if v.is_floating_point()}
    if floats == {torch.float64}:
        module = module.to(torch.float64)  # rather than round them
    load_state(module, found.state, found.path)
    return module, plan


def _made(name: str, module: Any, options: ModelOptions) -> TTPlan:
    """The plan of ``options`` for a dense network."""
    from ttsnn.driver import import_source, make_plan

    bare = replace(options, weights=None, plan=None)
    source = ModelSource(name, "module", module, None, input_of(name, module, bare), bare)
    return make_plan(import_source(source), options.plan, options.mode)
