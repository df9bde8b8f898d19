"""Firing rates in steps: layers whose inputs spike about as often share what was measured.

A layer is measured with spikes of the least step that is not below its own rate, so never with
fewer spikes than it has.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["STEPS", "measured_inputs", "rate_step", "serving_steps"]

STEPS = tuple(round(2.0 ** (-k / 4), 4) for k in range(40, -1, -1))
"""Shares of ones that layers are measured at: four steps for a factor of two, up to 1."""

SERVES_DOWN_TO = 0.5
"""Least part of a record's rate that a layer's may be."""

MEASURED_SPIKES = 1 << 21
"""Places for spikes that a candidate is measured on: one input of a small layer has so few that
a processor learns to predict which are ones."""


def rate_step(rate: float) -> float:
    """The least step that is not below a share of ones."""
    return STEPS[min(bisect_left(STEPS, rate), len(STEPS) - 1)]


def serving_steps(rate: float) -> tuple[float, ...]:
    """Steps whose records serve a layer with this share of ones, the nearest first.

    Only steps above its own rate: what was faster event-driven there is so here, where there is
    less to add.
    """
    own = rate_step(rate)
    return tuple(s for s in STEPS if own <= s <= max(own, rate / SERVES_DOWN_TO))


def measured_inputs(size: int) -> int:
    """How many different inputs of ``size`` elements a candidate is called with in turn."""
    return -(-MEASURED_SPIKES // size)
