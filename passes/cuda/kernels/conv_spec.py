"""What one launch of the convolution kernel computes, and its arguments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from math import ceil

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import IntImm, Var

from ttsnn.passes.layers.config import LifConfig, Stage
from ttsnn.passes.layers.signature import LayerParams
from ttsnn.passes.tir.body import i64

__all__ = ["ConvSpec", "LayerParams", "Phase", "Segment", "conv_params", "phases", "result_shapes"]


@dataclass(frozen=True)
class Segment:
    """Timesteps that one stage computes, from an operand of their own.

    Attributes:
        stage: the convolution.
        begin, end: timesteps of the result.
        x_steps: timesteps of the operand: 1 where it does not change with time.
        x_begin: the operand's timestep that belongs to ``begin``.
        x_dtype: of the operand: ``dtype`` of the kernel, or ``"uint8"`` for spikes.
        apart: the operand's pixels lie so far apart, with zeros between them: (1, 1), or the
            strides of the convolution whose input's gradient this is. Taps count these zeros;
            the stage itself has no strides then.
    """

    stage: Stage
    begin: int
    end: int
    x_steps: int
    x_begin: int
    x_dtype: str
    apart: tuple[int, int] = (1, 1)

    @property
    def still(self) -> bool:
        """Whether one contraction serves all its timesteps."""
        return self.x_steps == 1 and self.end - self.begin > 1


@dataclass(frozen=True)
class ConvSpec:
    """One stage (for htt: one for each kind of timestep), then bias, residual, neuron.

    Attributes:
        segments: one after the other they cover the timesteps 0…T.
        T: timesteps of the result.
        bias: whether a bias [Cout] is added.
        residual_T: timesteps of a residual that is added, 0 for none.
        residual_dtype: ``dtype``, or ``"uint8"`` for spikes.
        lif: the neuron, or None.
        v0: whether it starts from an operand.
        emit: results: ``"membrane"``, ``"spikes"``, ``"v_last"``.
        dtype: of sums, membranes and results.
        spikes_dtype: of the result ``"spikes"``.
        precision: how the operands of products are rounded: ``PRECISIONS`` of ``mma.py``.
    """

    segments: tuple[Segment, ...]
    T: int
    bias: bool
    residual_T: int
    residual_dtype: str
    lif: LifConfig | None
    v0: bool
    emit: tuple[str, ...]
    dtype: str
    spikes_dtype: str
    precision: str = "fp32"

    @property
    def stage(self) -> Stage:
        """A stage with the size of the result."""
        return self.segments[0].stage

    @property
    def folded(self) -> bool:
        """Whether timesteps are independent, and count as images."""
        (first, *rest) = self.segments
        return self.lif is None and not rest and not first.still and self.residual_T in (0, self.T)


@dataclass(frozen=True)
class Phase:
    """Pixels of a result that lie alike between the pixels of the operand.

    Attributes:
        spec: their convolution, whose operand has no gaps.
        taps: for each segment, which of the weight's taps it has.
        first: the first of these pixels; the others are ``apart`` of the original segment.
    """

    spec: ConvSpec
    taps: tuple[tuple[int, ...], ...]
    first: tuple[int, int] = (0, 0)


def phases(spec: ConvSpec) -> list[Phase]:
    """The parts of a convolution that do not meet the zeros between an operand's pixels.

    One, where there are no such zeros; in others the result may be all zeros, without taps.
    """
    part, *_ = spec.segments
    if part.apart == (1, 1):
        return [Phase(spec, tuple(tuple(range(len(s.stage.taps))) for s in spec.segments))]
    s, (down, across) = part.stage, part.apart
    found = []
    for y, x in product(range(min(down, s.out_size[0])), range(min(across, s.out_size[1]))):
        met = [k for k, (a, b) in enumerate(s.taps) if (y + a) % down == (x + b) % across == 0]
        taps = tuple(((y + s.taps[k][0]) // down, (x + s.taps[k][1]) // across) for k in met)
        size = ceil((s.out_size[0] - y) / down), ceil((s.out_size[1] - x) / across)
        own = replace(part, stage=replace(s, taps=taps, out_size=size), apart=(1, 1))
        found.append(Phase(replace(spec, segments=(own,)), (tuple(met),), (y, x)))
    return found


def conv_params(spec: ConvSpec, batch: int | None) -> LayerParams:
    """Declare the arguments x0, w0, x1, w1, bias, residual, v0, and the results.

    ``batch`` None makes it symbolic.
    """
    n: Expr = Var("n", "int64") if batch is None else IntImm("int64", batch)
    image = (n, *spec.stage.out_size, spec.stage.out_channels)

    def declare(name: str, shape: tuple[int | Expr, ...], dtype: str = spec.dtype) -> Var:
        return tirx.decl_buffer([i64(s) for s in shape], dtype, name)

    operands = {}
    for i, part in enumerate(spec.segments):
        s = part.stage
        shape = (part.x_steps, n, *s.in_size, s.in_channels)
        operands[f"x{i}"] = declare(f"x{i}", shape, part.x_dtype)
        operands[f"w{i}"] = declare(f"w{i}", (len(s.taps), s.in_channels, s.out_channels))
    if spec.bias:
        operands["bias"] = declare("bias", (spec.stage.out_channels,))
    if spec.residual_T:
        operands["residual"] = declare("residual", (spec.residual_T, *image), spec.residual_dtype)
    if spec.v0:
        operands["v0"] = declare("v0", image)
    results = {
        name: declare(name, *made)
        for name, made in zip(spec.emit, result_shapes(spec, n), strict=True)
    }
    return LayerParams(operands, results, n)


def result_shapes(spec: ConvSpec, batch: int | Expr) -> list[tuple[tuple[int | Expr, ...], str]]:
    """Shape and dtype of each result, in the order of ``emit``."""
    image = (batch, *spec.stage.out_size, spec.stage.out_channels)
    return [
        (
            image if name == "v_last" else (spec.T, *image),
            spec.spikes_dtype if name == "spikes" else spec.dtype,
        )
        for name in spec.emit
    ]
