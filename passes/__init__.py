"""Compiler passes: ``IRModule → IRModule``, one a file."""

from ttsnn.passes.count import count
from ttsnn.passes.decompose_to_tt import DecomposeToTT
from ttsnn.passes.layer_infos import layer_infos
from ttsnn.passes.merge_tt import MergeTT

__all__ = ["DecomposeToTT", "MergeTT", "count", "layer_infos"]
