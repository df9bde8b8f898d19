"""Compiler passes: ``IRModule → IRModule``, one a file."""

from ttsnn.passes.count import count
from ttsnn.passes.decompose_to_tt import DecomposeToTT
from ttsnn.passes.expose_spikes import ExposeSpikes
from ttsnn.passes.fold_batch_norm import FoldBatchNorm
from ttsnn.passes.hoist_time_invariant import HoistTimeInvariant
from ttsnn.passes.layer_infos import layer_infos
from ttsnn.passes.merge_tt import MergeTT
from ttsnn.passes.prune import Prune
from ttsnn.passes.schedule_contractions import CostModel, ScheduleContractions
from ttsnn.passes.verify_gradient import VerifyDifferentiable

__all__ = [
    "CostModel",
    "DecomposeToTT",
    "ExposeSpikes",
    "FoldBatchNorm",
    "HoistTimeInvariant",
    "MergeTT",
    "Prune",
    "ScheduleContractions",
    "VerifyDifferentiable",
    "count",
    "layer_infos",
]
