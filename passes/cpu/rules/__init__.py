"""Schedule rules of the CPU target: ``rule(func, target) -> Schedule | None``, one file each."""

from ttsnn.passes.cpu.rules.generic import elementwise_rule, fallback_rule, reduction_rule
from ttsnn.passes.cpu.rules.layer import event_rule, layer_rule
from ttsnn.passes.cpu.rules.lif import lif_rule
from ttsnn.passes.cpu.rules.matmul import matmul_rule

__all__ = [
    "RULES",
    "elementwise_rule",
    "event_rule",
    "fallback_rule",
    "layer_rule",
    "lif_rule",
    "matmul_rule",
    "reduction_rule",
]

RULES = (
    ("events", event_rule),
    ("layer", layer_rule),
    ("lif", lif_rule),
    ("matmul", matmul_rule),
    ("elementwise", elementwise_rule),
    ("reduction", reduction_rule),
    ("fallback", fallback_rule),
)
"""Asked in this order, the first that answers wins; the last accepts everything."""
