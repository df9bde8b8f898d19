"""Cores of a planned layer: the one place where the pass and the PyTorch twin get them."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ttsnn.errors import PlanError
from ttsnn.plans.plan import TTLayer
from ttsnn.tt import (
    ConvCores,
    FitErrors,
    check_mode,
    conv_errors,
    fit_conv,
    fit_linear,
    fresh_conv,
    fresh_linear,
    reconstruct_linear,
    relative_error,
)

__all__ = ["core_names", "cores_of_layer", "errors_of_layer"]


def core_names(layer: TTLayer) -> list[str]:
    """Parameter names of the cores below the layer's name: g1 … g4, or cores.0, cores.1, …"""
    if layer.kind == "conv2d":
        return ["g1", "g2", "g3", "g4"]
    return [f"cores.{k}" for k in range(len(layer.out_factors))]


def cores_of_layer(
    name: str,
    layer: TTLayer,
    weight: ArrayLike,
    *,
    T: int | None = None,
    init: str = "fit",
    seed: int = 0,
) -> dict[str, NDArray]:
    """Parameter name (:func:`core_names`) → core, in float64.

    Args:
        name: the layer's name; with the seed it determines fresh cores.
        weight: the dense weight; with ``init="fresh"`` only its shape counts.
        T: the plan's timesteps (htt).
        init: ``"fit"`` approximates the weight, ``"fresh"`` draws cores for training.

    Raises:
        PlanError: ranks, factors or timesteps do not fit; names the layer.
    """
    if init not in ("fit", "fresh"):
        raise PlanError(f"unknown init {init!r} of TT cores: use 'fit' or 'fresh'")
    weight = np.asarray(weight)
    layer_seed = (seed, zlib.crc32(name.encode()))
    try:
        if layer.kind == "conv2d":
            mode = check_mode(layer.mode)
            conv = (
                fit_conv(weight, mode, layer.ranks, timesteps=layer.timesteps, T=T)
                if init == "fit"
                else fresh_conv(weight.shape, mode, layer.ranks, seed=layer_seed)
            )
            cores = list(conv)
        else:
            factors = (layer.out_factors, layer.in_factors)
            cores = (
                fit_linear(weight, *factors, layer.ranks)
                if init == "fit"
                else fresh_linear(weight.shape, *factors, layer.ranks, seed=layer_seed)
            )
    except PlanError as error:
        raise PlanError(f"layer {name!r}: {error}") from None
    return dict(zip(core_names(layer), cores, strict=True))


def errors_of_layer(layer: TTLayer, weight: ArrayLike, cores: dict[str, NDArray]) -> FitErrors:
    """Relative errors of a layer's cores against its dense weight."""
    values = [cores[k] for k in core_names(layer)]
    if layer.kind == "linear":
        return FitErrors(relative_error(weight, reconstruct_linear(values)))
    return conv_errors(weight, ConvCores(*values), check_mode(layer.mode))
