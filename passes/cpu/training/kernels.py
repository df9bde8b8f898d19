"""Calls of the training kernels: images [1, R, H, W, C] in, images out, equal kernels shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from ttsnn.passes.contraction import stage_macs
from ttsnn.passes.cpu.isa import isa_of
from ttsnn.passes.cpu.kernels.batch_norm import (
    batch_norm_apply,
    batch_norm_dx,
    batch_norm_stats,
    batch_norm_sums,
)
from ttsnn.passes.cpu.kernels.finished import marked
from ttsnn.passes.cpu.kernels.fused import fused_layer
from ttsnn.passes.cpu.kernels.interleave import interleave
from ttsnn.passes.cpu.kernels.lif_train import (
    TrainedNeuron,
    lif_train_backward,
    lif_train_forward,
)
from ttsnn.passes.cpu.kernels.pack import packed_channels, panel_vectors
from ttsnn.passes.cpu.kernels.tiles import default_tiles
from ttsnn.passes.cpu.kernels.weight_grad import weight_grad
from ttsnn.passes.cpu.kernels.weight_map import core_grads, packed_weight
from ttsnn.passes.cpu.layer_config import LayerConfig, Stage
from ttsnn.passes.cpu.rules.layer import DEFAULT_THREADS
from ttsnn.passes.cpu.training.link import Link, input_phases
from ttsnn.passes.shapes import known_dims

__all__ = ["TrainingKernels"]

UNITS_PER_THREAD = 2
"""Parts that a sum over pixels is split into, for each thread: a slow thread does less."""


class TrainingKernels:
    """Emits calls into one block builder; kernels of equal shape are made once.

    Args:
        bb: where calls and kernels go.
        target: the CPU.
    """

    def __init__(self, bb: relax.BlockBuilder, target: tvm.target.Target) -> None:
        self.bb = bb
        self.isa = isa_of(target)
        self.threads = int(target.attrs.get("num-cores", 0)) or DEFAULT_THREADS
        self.units = UNITS_PER_THREAD * self.threads
        self._made: dict[tuple, tvm.ir.GlobalVar] = {}

    def rank_multiple(self, dtype: str) -> int:
        """What ranks are rounded up to."""
        return max(1, self.isa.lanes(dtype) // 2)

    def call(
        self,
        key: tuple,
        make: Callable[[], PrimFunc],
        args: Sequence[relax.Expr],
        shapes: Sequence[Sequence[int]],
        dtype: str,
    ) -> list[relax.Var]:
        """Call the kernel that ``make`` makes, unless one of that key is there; its results."""
        if key not in self._made:
            self._made[key] = self.bb.add_func(make(), str(key[0]))
        types = [relax.TensorType([int(s) for s in shape], dtype) for shape in shapes]
        out = relax.call_tir(self._made[key], list(args), types if len(types) > 1 else types[0])
        out = self.bb.emit(out)
        if len(types) == 1:
            return [out]
        return [self.bb.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]

    # -- convolutions ------------------------------------------------------------------------

    def conv(
        self, link: Link, x: relax.Var, sources: Sequence[relax.Expr], side: relax.Var | None = None
    ) -> relax.Var:
        """The link's convolution of an image; ``side``, like the result, is added."""
        weight = self._weight(link, link.stage, sources, False, None, _dtype(x))
        return self._tap_conv(link.stage, x, weight, side)

    def conv_input_grad(
        self, link: Link, dy: relax.Var, sources: Sequence[relax.Expr]
    ) -> relax.Var:
        """Gradient to the link's input."""
        dtype, phases = _dtype(dy), input_phases(link.stage)
        parts = {}
        for phase in phases:
            if phase.stage is not None:
                order = None if len(phase.order) == len(link.stage.taps) else phase.order
                weight = self._weight(link, phase.stage, sources, True, order, dtype)
                parts[phase.place] = self._tap_conv(phase.stage, dy, weight)
        if link.stage.strides == (1, 1):
            return parts[0, 0]
        shape = (1, known_dims(dy)[1], *link.stage.in_size, link.stage.in_channels)
        strides, present = link.stage.strides, tuple(parts)
        return self.call(
            ("interleave", shape, strides, present, dtype),
            lambda: interleave(shape, strides, present, dtype, self.isa),
            list(parts.values()),
            [shape],
            dtype,
        )[0]

    def conv_weight_grads(self, link: Link, x: relax.Var, dy: relax.Var) -> list[relax.Var]:
        """Gradients of the link's parameters, in the order of ``link.sources``."""
        stage, dtype, images = link.stage, _dtype(x), known_dims(x)[1]
        # channels beyond a rank are zero
        channels = (link.weight.channels[0], stage.out_channels)
        (dw,) = self.call(
            ("weight_grad", stage, images, dtype, channels[0]),
            lambda: weight_grad(stage, images, dtype, self.isa, self.units, channels[0]),
            [x, dy],
            [(len(stage.taps), *channels)],
            dtype,
        )
        return self.call(
            ("core_grads", link.weight, channels, dtype),
            lambda: core_grads(link.weight, channels, dtype),
            [dw],
            link.weight.shapes,
            dtype,
        )

    def _packing(self, dtype: str) -> tuple[int, int]:
        return self.isa.lanes(dtype), panel_vectors(self.isa)

    def _weight(
        self,
        link: Link,
        stage: Stage,
        sources: Sequence[relax.Expr],
        transposed: bool,
        order: tuple[int, ...] | None,
        dtype: str,
    ) -> relax.Var:
        channels, packing = (stage.in_channels, stage.out_channels), self._packing(dtype)
        taps = len(link.weight.taps) if order is None else len(order)
        size = taps * channels[0] * packed_channels(channels[1], packing[0])
        return self.call(
            ("pack_weight", link.weight, channels, dtype, transposed, order),
            lambda: packed_weight(link.weight, channels, dtype, packing, transposed, order),
            [sources[i] for i in link.sources],
            [(size,)],
            dtype,
        )[0]

    def _tap_conv(
        self, stage: Stage, x: relax.Var, weight: relax.Var, side: relax.Var | None = None
    ) -> relax.Var:
        dtype, images = _dtype(x), known_dims(x)[1]
        config = LayerConfig(
            name="",
            T=1,
            x_T=1,
            stages=(stage,),
            half_stages=(),
            timesteps=1,
            bias=False,
            residual=side is not None,
            residual_T=1,
            lif=None,
            v0=False,
            emit=("membrane",),
            dtype=dtype,
            packing=self._packing(dtype),
        )

        def make() -> PrimFunc:
            tiles = default_tiles(config, images, self.isa, self.threads)
            func = fused_layer(config, images, self.isa, tiles, "conv")
            return marked(func, "layer", images * stage_macs(stage))

        args = [x, weight, *([] if side is None else [side])]
        shape = (1, images, *stage.out_size, stage.out_channels)
        return self.call(("conv", config, images), make, args, [shape], dtype)[0]

    # -- normalisation -----------------------------------------------------------------------

    def batch_norm_stats(
        self, x: relax.Var, running: Sequence[relax.Expr], epsilon: float, momentum: float
    ) -> list[relax.Var]:
        """(new running mean, new running variance, mean, 1/σ)."""
        shape, dtype = _shape(x), _dtype(x)
        return self.call(
            ("batch_norm_stats", shape, dtype, epsilon, momentum),
            lambda: batch_norm_stats(shape, dtype, self.isa, self.units, epsilon, momentum),
            [x, *running],
            [shape[-1:]] * 4,
            dtype,
        )

    def batch_norm_apply(
        self, x: relax.Var, channel: Sequence[relax.Expr], side: relax.Var | None = None
    ) -> relax.Var:
        """Normalised x; ``channel`` is (gamma, beta, mean, 1/σ); ``side`` is added."""
        shape, dtype = _shape(x), _dtype(x)
        return self.call(
            ("batch_norm_apply", shape, dtype, side is None),
            lambda: batch_norm_apply(shape, dtype, self.isa, side is not None),
            [x, *channel, *([] if side is None else [side])],
            [shape],
            dtype,
        )[0]

    def batch_norm_backward(
        self, x: relax.Var, channel: Sequence[relax.Expr], dy: relax.Var
    ) -> list[relax.Var]:
        """(dx, dgamma, dbeta); ``channel`` is (gamma, mean, 1/σ)."""
        shape, dtype = _shape(x), _dtype(x)
        sums = self.call(
            ("batch_norm_sums", shape, dtype),
            lambda: batch_norm_sums(shape, dtype, self.isa, self.units),
            [x, *channel[1:], dy],
            [shape[-1:]] * 2,
            dtype,
        )
        (dx,) = self.call(
            ("batch_norm_dx", shape, dtype),
            lambda: batch_norm_dx(shape, dtype, self.isa, False),
            [x, *channel, dy, *sums],
            [shape],
            dtype,
        )
        return [dx, *sums]

    # -- neurons -----------------------------------------------------------------------------

    def lif(self, neuron: TrainedNeuron, args: Sequence[relax.Expr]) -> list[relax.Var]:
        """(spikes[, v_last]) of :func:`lif_train_forward`."""
        shape, dtype = _shape(args[0]), _dtype(args[0])
        shapes = [shape, *([_state(shape, neuron)] if neuron.v_last else [])]
        return self.call(
            ("lif_forward", neuron, shape, dtype),
            lambda: lif_train_forward(neuron, shape, dtype, self.isa),
            args,
            shapes,
            dtype,
        )

    def lif_backward(self, neuron: TrainedNeuron, args: Sequence[relax.Expr]) -> list[relax.Var]:
        """(dx[, dv0]) of :func:`lif_train_backward`."""
        shape, dtype = _shape(args[0]), _dtype(args[0])
        shapes = [shape, *([_state(shape, neuron)] if neuron.dv0 else [])]
        return self.call(
            ("lif_backward", neuron, shape, dtype),
            lambda: lif_train_backward(neuron, shape, dtype, self.isa),
            args,
            shapes,
            dtype,
        )


def _dtype(x: relax.Expr) -> str:
    return str(x.ty.dtype)


def _shape(x: relax.Expr) -> tuple[int, ...]:
    return tuple(known_dims(x))


def _state(shape: tuple[int, ...], neuron: TrainedNeuron) -> tuple[int, ...]:
    return (shape[0], shape[1] // neuron.steps, *shape[2:])
