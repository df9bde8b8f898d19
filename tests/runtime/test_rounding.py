"""What rounding may move, on functions whose sensitivity is known."""

from __future__ import annotations

import numpy as np

from ttsnn.runtime.rounding import NOISE, moved_by_rounding


def test_smooth_results_move_by_about_the_noise_and_steps_by_their_height():
    weights = {"w": np.ones(1000), "count": np.arange(3)}

    def run(values):
        assert values["count"] is weights["count"]
        return [values["w"].max(keepdims=True), (values["w"] > 1 - 1e-9).mean(keepdims=True)]

    smooth, step = moved_by_rounding(run, weights, run(weights))
    assert 2 * NOISE < smooth < 20 * NOISE
    assert 0.5 < step < 1.5  # twice the half of all that fall below


def test_float32_stays_float32():
    weights = {"w": np.ones(4, np.float32)}
    seen = []

    def run(values):
        seen.append(values["w"].dtype)
        return [values["w"]]

    moved_by_rounding(run, weights, [weights["w"]], draws=3)
    assert seen == [np.float32] * 3
