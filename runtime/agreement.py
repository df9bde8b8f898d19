"""Do two executions of one spiking network agree?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["TOLERANCE", "Agreement", "agreement_of", "max_rel_error"]

TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
"""Largest relative error of the logits where no spike flipped."""


@dataclass(frozen=True)
class Agreement:
    """How far two executions are apart.

    Attributes:
        max_rel_error: max |a − b| / max |b| over the logits of all samples.
        checked_samples: samples without a flipped spike (all, where spikes are not known).
        checked_error: the same error over those samples alone; 0 without any.
        top1: share of samples with the same largest logit.
        flipped_spikes: places where one fired and the other did not; None: not compared.
        total_spikes: spikes of the reference; None: not compared.
        spike_places: places that were compared (neurons × timesteps × samples).
        first_flip: index of the first neuron layer with a flip; None without.
        layer_flips: flips of each layer.
        layer_rates: firing rate of each layer in the reference.
    """

    max_rel_error: float
    checked_samples: int
    checked_error: float
    top1: float
    flipped_spikes: int | None
    total_spikes: int | None
    spike_places: int
    first_flip: int | None
    layer_flips: tuple[int, ...]
    layer_rates: tuple[float, ...]

    def ok(self, dtype: str) -> bool:
        """Whether it passes: in float64 no spike flips and the error is at most 1e-10; in
        float32 the samples without a flip agree to 1e-4 (rounding may flip a spike near the
        threshold, and everything behind it), and at most 1 % of the places flip.
        """
        if not np.isfinite(self.max_rel_error):
            return False
        if dtype == "float64":
            return not self.flipped_spikes and self.max_rel_error <= TOLERANCE[dtype]
        few = (self.flipped_spikes or 0) <= 0.01 * max(self.spike_places, 1)
        return few and self.checked_error <= TOLERANCE[dtype]


def max_rel_error(a: np.ndarray, b: np.ndarray) -> float:
    """max |a − b| / max |b|; NaN where either holds one."""
    if a.size == 0:
        return 0.0
    difference = float(np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))))
    scale = float(np.max(np.abs(b.astype(np.float64))))
    if difference == 0.0:
        return 0.0
    return difference / scale if scale else float("inf")


def agreement_of(
    logits: np.ndarray,
    reference: np.ndarray,
    spikes: Sequence[np.ndarray] | None,
    reference_spikes: Sequence[np.ndarray] | None,
) -> Agreement:
    """Compare logits [N, …] and, where both are known, spikes [T, N, …] layer by layer."""
    samples = logits.shape[0]
    flips, rates = [], []
    clean = np.ones(samples, bool)
    places = total = 0
    compared = spikes is not None and reference_spikes is not None
    if spikes is not None and reference_spikes is not None:
        for ours, theirs in zip(spikes, reference_spikes):
            wrong = (ours != 0) != (theirs != 0)
            flips.append(int(wrong.sum()))
            rates.append(float((theirs != 0).mean()))
            total += int((theirs != 0).sum())
            places += wrong.size
            clean &= ~wrong.reshape(wrong.shape[0], samples, -1).any(axis=(0, 2))
    classes = logits.reshape(samples, -1).argmax(axis=1)
    expected = reference.reshape(samples, -1).argmax(axis=1)
    return Agreement(
        max_rel_error=max_rel_error(logits, reference),
        checked_samples=int(clean.sum()),
        checked_error=max_rel_error(logits[clean], reference[clean]),
        top1=float((classes == expected).mean()),
        flipped_spikes=sum(flips) if compared else None,
        total_spikes=total if compared else None,
        spike_places=places,
        first_flip=next((i for i, n in enumerate(flips) if n), None),
        layer_flips=tuple(flips),
        layer_rates=tuple(rates),
    )
