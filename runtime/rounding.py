"""How far rounding may move the results of a spiking network.

A sum that is rounded otherwise flips a spike near its threshold, and all behind it follow: in deep
networks with batch statistics, logits move by a good part of their size. So what another device
may differ by is measured: the same program runs with weights that differ by about as much as
rounding makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ttsnn.runtime.agreement import max_rel_error

__all__ = ["DRAWS", "moved_by_rounding"]

NOISE = 1e-5
"""Of each weight; some ten to a hundred times float32's rounding, as in sums of many terms."""
DRAWS = 4
MARGIN = 2.0


def moved_by_rounding(
    run: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]],
    weights: Mapping[str, np.ndarray],
    results: Sequence[np.ndarray],
    *,
    draws: int = DRAWS,
) -> list[float]:
    """What to allow of max |r − e| / max |e| for each result: twice the most of some draws.

    Args:
        run: results from weights.
        weights: floating-point ones are changed, others stay.
        results: those of the unchanged weights.
        draws: how often other changes are tried.
    """
    rng = np.random.default_rng(0)
    most = np.zeros(len(results))
    for _ in range(draws):
        changed = {
            name: (value * (1 + NOISE * rng.standard_normal(value.shape))).astype(value.dtype)
            if value.dtype.kind == "f"
            else value
            for name, value in weights.items()
        }
        errors = [max_rel_error(*pair) for pair in zip(run(changed), results, strict=True)]
        most = np.maximum(most, errors)
    return [float(MARGIN * value) for value in most]
