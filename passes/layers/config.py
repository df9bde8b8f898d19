"""What one layer computes.

A *layer* is a chain of tap convolutions (the TT cores, or one dense convolution), then bias,
residual add and LIF over time. The Relax op ``relax.snn.layer`` carries a :class:`LayerConfig` as
JSON in its attribute ``config``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

__all__ = ["LayerConfig", "LifConfig", "Stage", "useful_taps"]


@dataclass(frozen=True)
class Stage:
    """One convolution over an explicit list of taps, channels last.

    ``y[ho, wo, co] = Σ_k Σ_ci x[ho·strides[0] + taps[k][0], wo·strides[1] + taps[k][1], ci]
    · w[k, ci, co]``, where x is zero outside its bounds. Offsets are relative to the input
    pixel ``(ho·stride, wo·stride)``: a 3×3 convolution with padding 1 has offsets −1, 0, 1;
    padding and dilation are folded into the offsets. The weight's shape is [taps, Cin, Cout].
    """

    taps: tuple[tuple[int, int], ...]
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    in_channels: int
    out_channels: int
    strides: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class LifConfig:
    """Scalar attributes of ``relax.snn.lif``, same names and meanings."""

    decay: float
    gain: float
    tau: float
    v_threshold: float
    v_reset: float
    reset: str
    fire: str
    reset_timing: str
    form: str


@dataclass(frozen=True)
class LayerConfig:
    """A whole layer.

    Attributes:
        name: the layer's name in the model, for reports.
        T: number of timesteps that the output has.
        x_T: timesteps of the input: T, or 1 where the input does not change with time; then
            the convolution is computed once and its result serves every step.
        stages: the chain for timesteps ``t < timesteps``.
        half_stages: the chain for the other timesteps (htt); empty where all steps run `stages`.
        timesteps: how many leading steps run `stages`; T where `half_stages` is empty.
        bias: whether a bias [Cout] is added after the last stage.
        residual: whether a tensor shaped like the output is added after the bias.
        residual_T: T, or 1 where the residual does not change with time.
        lif: the neuron after it, or None.
        v0: whether the neuron starts from an operand [N, H, W, Cout] instead of zero.
        emit: results in order, of ``"membrane"`` (the sum that enters the neuron),
            ``"spikes"``, ``"v_last"``.
        dtype: ``"float32"`` or ``"float64"``.
        byte_x: whether the input holds spikes as uint8, 0 or 1, instead of ``dtype``.
        byte_spikes: whether the result ``"spikes"`` does.
        packing: None where weights are plain [taps, Cin, Cout]; (lanes of a vector, most vectors
            in a panel) where ``cpu.kernels.pack.pack_layer_weights`` has packed them.
    """

    name: str
    T: int
    x_T: int
    stages: tuple[Stage, ...]
    half_stages: tuple[Stage, ...]
    timesteps: int
    bias: bool
    residual: bool
    residual_T: int
    lif: LifConfig | None
    v0: bool
    emit: tuple[str, ...]
    dtype: str
    byte_x: bool = False
    byte_spikes: bool = False
    packing: tuple[int, int] | None = None

    def dtype_of(self, name: str) -> str:
        """dtype of an operand or result: ``"x"``, ``"spikes"``, ``"w0"`` …"""
        small = {"x": self.byte_x, "spikes": self.byte_spikes}
        return "uint8" if small.get(name) else self.dtype

    def to_json(self) -> str:
        """Compact JSON for the op's attribute."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> LayerConfig:
        """Inverse of :meth:`to_json`."""
        d = json.loads(text)
        for key in ("stages", "half_stages"):
            d[key] = tuple(
                Stage(
                    **{
                        **s,
                        "taps": tuple(tuple(t) for t in s["taps"]),
                        "in_size": tuple(s["in_size"]),
                        "out_size": tuple(s["out_size"]),
                        "strides": tuple(s["strides"]),
                    }
                )
                for s in d[key]
            )
        d["lif"] = None if d["lif"] is None else LifConfig(**d["lif"])
        d["emit"] = tuple(d["emit"])
        d["packing"] = None if d["packing"] is None else tuple(d["packing"])
        return cls(**d)


def useful_taps(stage: Stage) -> list[int]:
    """Indices of the taps that read at least one pixel of the input; at least one index."""

    def meets(tap: tuple[int, int]) -> bool:
        return all(
            any(0 <= o * step + offset < size for o in range(count))
            for offset, step, size, count in zip(tap, stage.strides, stage.in_size, stage.out_size)
        )

    return [k for k, tap in enumerate(stage.taps) if meets(tap)] or [0]
