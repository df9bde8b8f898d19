"""Whether trained cores are of the plan that is asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.errors import PlanError

if TYPE_CHECKING:
    from ttsnn.plans import TTPlan


def check_same(plan: TTPlan, wanted: Any, mode: str, path: str) -> None:
    """Refuse cores of another plan than the one that is asked for."""
    from ttsnn.plans import TTPlan

    if isinstance(wanted, (str, os.PathLike)) and Path(wanted).suffix == ".json":
        wanted = TTPlan.load(wanted)
    modes = sorted({la.mode for la in plan.layers.values() if la.kind == "conv2d"})
    if isinstance(wanted, TTPlan):
        same, text = wanted.layers == plan.layers, f"the given one ({wanted.rule})"
    else:
        same, text = str(wanted) == plan.rule and modes in ([], [mode]), f"{wanted}, {mode}"
    if not same:
        raise PlanError(
            f"{path}: its cores are of the plan {plan.rule}, {'/'.join(modes) or 'tt'}, not of "
            f"{text}; leave the plan out, or give the one that they were trained with"
        )
