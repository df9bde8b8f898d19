"""Stages of ``relax.snn.layer`` from the program's convolutions and linear layers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm import relax

from ttsnn.ops import tt_conv_attrs_of
from ttsnn.passes.contraction import Contraction, chain_of, contract, parse_form
from ttsnn.passes.layers.config import LayerConfig, Stage

__all__ = ["LayerBody", "conv_body", "linear_body", "plain_config", "tt_conv_body"]


@dataclass(frozen=True)
class LayerBody:
    """What a layer contracts.

    Attributes:
        stages: chain of the leading ``timesteps`` steps.
        half: chain of the other steps; empty where there are none.
        timesteps: as in ``LayerConfig``; None for all.
    """

    stages: list[Contraction]
    half: list[Contraction]
    timesteps: int | None = None


def conv_body(call: relax.Call, weight: np.ndarray, in_size: tuple[int, int]) -> LayerBody:
    """``nn.conv2d`` with one group; weight [Cout, Cin, Kh, Kw]."""
    attrs = call.attrs
    sh, sw = (int(s) for s in attrs.strides)
    top, left, bottom, right = (int(p) for p in attrs.padding)
    dh, dw = (int(d) for d in attrs.dilation)
    cout, cin, kh, kw = weight.shape
    size = (
        (in_size[0] + top + bottom - dh * (kh - 1) - 1) // sh + 1,
        (in_size[1] + left + right - dw * (kw - 1) - 1) // sw + 1,
    )
    taps = [(y * dh - top, x * dw - left) for y in range(kh) for x in range(kw)]
    packed = weight.transpose(2, 3, 1, 0).reshape(kh * kw, cin, cout)
    return LayerBody([(Stage(tuple(taps), in_size, size, cin, cout, (sh, sw)), packed)], [])


def tt_conv_body(
    call: relax.Call, cores: list[np.ndarray], in_size: tuple[int, int], steps: int
) -> LayerBody:
    """``tt.conv2d`` in the form that its attribute says; the unmerged chain without one."""
    attrs = tt_conv_attrs_of(call)
    forms = dict(part.split("=", 1) for part in attrs.form.split(";")) if attrs.form else {}

    def stages(kind: str) -> list[Contraction]:
        form = parse_form(forms.get(kind, "chain"), kind)
        return contract(chain_of(kind, attrs, cores, in_size), form)

    if attrs.mode != "htt":
        return LayerBody(stages(attrs.mode), [])
    full = steps if attrs.timesteps < 0 else attrs.timesteps
    if full in (0, steps):
        return LayerBody(stages("ptt" if full else "half"), [])
    return LayerBody(stages("ptt"), stages("half"), full)


def linear_body(weight: np.ndarray, pixels: int) -> LayerBody:
    """Product with a weight [in, out] at every one of ``pixels`` in a row."""
    return LayerBody(
        [(Stage(((0, 0),), (1, pixels), (1, pixels), *weight.shape), weight[None])], []
    )


def plain_config(name: str, body: LayerBody, steps: int, x_steps: int, dtype: str) -> LayerConfig:
    """Config of the bare contraction: no bias, residual or neuron yet."""
    return LayerConfig(
        name=name,
        T=steps,
        x_T=x_steps,
        stages=tuple(s for s, _ in body.stages),
        half_stages=tuple(s for s, _ in body.half),
        timesteps=steps if body.timesteps is None else body.timesteps,
        bias=False,
        residual=False,
        residual_T=steps,
        lif=None,
        v0=False,
        emit=("membrane",),
        dtype=dtype,
    )
