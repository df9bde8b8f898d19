"""Schedule rules of the CUDA target: ``rule(func, target) -> Schedule | None``, one file each."""

from ttsnn.passes.cuda.rules.generic import elementwise_rule, fallback_rule, reduction_rule
from ttsnn.passes.cuda.rules.lif import lif_rule
from ttsnn.passes.cuda.rules.matmul import matmul_rule

__all__ = [
    "RULES",
    "elementwise_rule",
    "fallback_rule",
    "lif_rule",
    "matmul_rule",
    "reduction_rule",
]

RULES = (
    ("lif", lif_rule),
    ("elementwise", elementwise_rule),
    ("matmul", matmul_rule),
    ("reduction", reduction_rule),
    ("fallback", fallback_rule),
)
"""Asked in this order, the first that answers wins; the last accepts everything."""
