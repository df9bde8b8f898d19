"""Fixed-point numbers: bit for bit what integer arithmetic gives."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction as Exact
from types import ModuleType

import numpy as np
import pytest

from ttsnn.accel_target.arch import Architecture, Fraction, load_architecture
from ttsnn.accel_target.codegen.generate import compile_program
from ttsnn.accel_target.fixed import fixed_point, rounded
from ttsnn.accel_target.isa import Format
from ttsnn.accel_target.simulate import simulate


def fixed(arch: Architecture, **fraction: int) -> Architecture:
    words = dataclasses.replace(arch.words, number_format="fixed", fraction=Fraction(**fraction))
    return dataclasses.replace(arch, words=words)


@pytest.mark.parametrize(("bits", "fraction"), [(8, 4), (8, 0), (4, 6), (16, 10), (8, -2)])
def test_rounding_is_exact_arithmetic(bits: int, fraction: int) -> None:
    """Against fractions: nearest, ties to even, saturated."""
    rng = np.random.default_rng(bits + fraction)
    step = Exact(2) ** -fraction
    ties = (rng.integers(-300, 300, 200) + 0.5) * float(step)
    values = np.concatenate([rng.normal(size=400) * 2.0 ** (bits - fraction - 1), ties, [0.0]])
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    for value, found in zip(values.tolist(), rounded(values, bits, fraction).tolist()):
        whole = min(max(round(Exact(value) / step), low), high)  # round() takes ties to even
        assert Exact(found) == whole * step, value
    assert rounded(np.array([np.inf, -np.inf, np.nan]), bits, fraction).tolist() == [
        float(high * step), float(low * step), 0.0,
    ]  # fmt: skip


def test_formats_have_their_words() -> None:
    sata = load_architecture("sata")
    assert fixed_point(sata) is None
    rounding = fixed_point(fixed(sata, weight=6, activation=4, gradient=12, accumulator=10))
    assert rounding is not None
    value = np.array([math.pi / 7])
    found = {f: float(rounding(value, f)[0]) for f in Format}
    assert found[Format.WEIGHT] == round(value[0] * 64) / 64
    assert found[Format.ACTIVATION] == round(value[0] * 16) / 16
    assert found[Format.GRADIENT] == round(value[0] * 4096) / 4096
    assert found[Format.ACCUMULATOR] == round(value[0] * 1024) / 1024
    assert found[Format.STATISTIC] == found[Format.SPIKE] == value[0]
    assert rounding(np.array([100.0]), Format.ACTIVATION)[0] == 7.9375


def test_a_convolution_is_integer_arithmetic(networks: ModuleType) -> None:
    """Spikes and 8-bit weights in, exact sums, one rounding to 8 bits."""
    rng = np.random.default_rng(3)
    spikes = rng.integers(0, 2, (1, 2, 5, 6, 7))
    weights = rng.integers(-128, 128, (9, 5, 3, 3))
    arch = fixed(load_architecture("sata"), weight=6, activation=4)
    mod = networks.convolution((1, 2, 5, 6, 7), (9, 5, 3, 3), padding=1, spiking=True)
    values = {"x": spikes * 4.0 - 1.0, "w": weights / 64}
    (found,) = simulate(compile_program(mod, arch), arch, values=values).outputs.values()
    padded = np.pad(spikes[0], ((0, 0), (0, 0), (1, 1), (1, 1)))
    exact = np.zeros((2, 9, 6, 7), np.int64)
    for y in range(6):
        for x in range(7):
            exact[:, :, y, x] = np.einsum(
                "ncij,ocij->no", padded[:, :, y : y + 3, x : x + 3], weights
            )
    whole = np.rint(exact / 4.0)  # from 6 to 4 bits behind the point, ties to even
    assert np.abs(whole).max() > 127  # some saturate
    assert np.array_equal(found * 16, np.clip(whole, -128, 127))


def test_wide_words_are_floating_point(networks: ModuleType) -> None:
    """52 bits round nothing that matters; 8 bits move results, and little."""
    sata = load_architecture("sata")
    mod = networks.train_step(networks.network("ptt", T=2, N=2))
    values = networks.values_of(mod)
    wide_words = dataclasses.replace(
        sata.words, weight=52, activation=52, gradient=52, accumulator=52, membrane=52
    )
    big = dataclasses.replace(  # room for them
        sata.clusters[0], weight_buffer=1 << 20, input_buffer=1 << 20, output_buffer=1 << 20
    )
    wide = dataclasses.replace(sata, words=wide_words, clusters=(big,))
    fine = fixed(wide, weight=44, activation=44, gradient=44, accumulator=44)

    def outputs(arch: Architecture) -> list[np.ndarray]:
        result = simulate(compile_program(mod, arch), arch, values=values, dtype="float64")
        return list(result.outputs.values())

    exact = outputs(wide)
    for a, b in zip(exact, outputs(fine), strict=True):
        assert np.allclose(a, b, atol=1e-9)
    coarse = outputs(fixed(sata))
    errors = [float(np.abs(a - b).max()) for a, b in zip(exact, coarse, strict=True)]
    assert 1e-4 < max(errors) < 2
