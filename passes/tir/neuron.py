"""One timestep of the LIF neuron as scalar or vector expressions."""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from ttsnn.lif_attrs import LifAttrs
from ttsnn.passes.layers.config import LifConfig
from ttsnn.passes.tir.body import splat

__all__ = ["lif_step"]


def lif_step(
    cfg: LifConfig | LifAttrs,
    x: Expr,
    v: Expr,
    dtype: str,
    lanes: int,
    *,
    decay: Expr | None = None,
    threshold: Expr | None = None,
) -> tuple[Expr, Expr]:
    """Spikes and the next membrane for input ``x`` and membrane ``v``: :mod:`ttsnn.lif_attrs`.

    ``decay`` and ``threshold`` replace the attributes where the neuron has them as operands.
    The results mention ``x`` and ``v`` several times: bind those to names first.
    """

    def const(value: float) -> Expr:
        return splat(value, dtype, lanes)

    def fires(h: Expr) -> Expr:
        return h > level if cfg.fire == ">" else h >= level

    def reset(h: Expr, by: Expr) -> Expr:
        if cfg.reset == "hard":
            return tirx.Select(by, const(cfg.v_reset), h)
        return tirx.Select(by, h - level, h) if cfg.reset == "soft" else h

    def leak(h: Expr) -> Expr:
        return h / const(cfg.tau) if decay is None else h * decay

    level = const(cfg.v_threshold) if threshold is None else threshold
    before = v
    if cfg.reset_timing == "before_decay":
        v = reset(v, fires(v))
    off_rest = v if cfg.reset == "soft" or cfg.v_reset == 0.0 else v - const(cfg.v_reset)
    if cfg.form == "multiply":
        gained = x if cfg.gain == 1.0 else const(cfg.gain) * x
        h = (const(cfg.decay) if decay is None else decay) * v + gained
    elif cfg.form == "euler":
        h = v + leak(x - off_rest)
    else:
        h = v - leak(off_rest) + x
    if cfg.reset_timing == "after_decay":
        h = reset(h, fires(before))
    fire = fires(h)
    spikes = tirx.Select(fire, const(1.0), const(0.0))
    return spikes, reset(h, fire) if cfg.reset_timing == "after_fire" else h
