"""Schedule rules of the CPU target: ``rule(func, target) -> Schedule | None``, one file each."""

from ttsnn.passes.cpu.rules.generic import elementwise_rule, fallback_rule, reduction_rule
from ttsnn.passes.cpu.rules.layer import layer_rule

__all__ = ["RULES", "elementwise_rule", "fallback_rule", "layer_rule", "reduction_rule"]

RULES = (
    ("layer", layer_rule),
    ("elementwise", elementwise_rule),
    ("reduction", reduction_rule),
    ("fallback", fallback_rule),
)
"""Asked in this order, the first that answers wins; the last accepts everything."""
