"""Calls of the training kernels: images [1, R, H, W, C] in, images out, equal kernels shared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import tvm
from tvm import relax
from tvm.tirx import PrimFunc

from ttsnn.passes.shapes import known_dims
from ttsnn.passes.training_kernels.arrays import Arrays, Shape
from ttsnn.passes.training_kernels.batch_norm import (
    batch_norm_apply,
    batch_norm_dx,
    batch_norm_stats,
    batch_norm_sums,
)
from ttsnn.passes.training_kernels.lif_backward import lif_train_backward
from ttsnn.passes.training_kernels.lif_forward import (
    SPIKE_BYTES,
    TrainedNeuron,
    lif_train_forward,
)
from ttsnn.passes.training_kernels.link import Link
from ttsnn.passes.training_kernels.weight_map import WeightMap

__all__ = ["TrainingKernels", "dtype_of"]


class TrainingKernels(ABC):
    """Emits calls into one block builder; kernels of equal shape are made once.

    Args:
        bb: where calls and kernels go.
    """

    recomputes_neurons = False
    """Whether a neuron's gradient is computed a second time rather than stored and read again,
    where only the batch norm before the neuron wants it."""

    def __init__(self, bb: relax.BlockBuilder) -> None:
        self.bb = bb
        self._made: dict[tuple, tvm.ir.GlobalVar] = {}

    @abstractmethod
    def arrays(self, shape: Shape, dtype: str, steps: int = 1) -> Arrays:
        """The target's loops over images of a shape."""

    @abstractmethod
    def rank_multiple(self, dtype: str) -> int:
        """What ranks are rounded up to in memory."""

    @abstractmethod
    def conv(self, link: Link, x: relax.Var, sources: Sequence[relax.Expr]) -> relax.Var:
        """A convolution of an image, which may be spikes as bytes.

        Args:
            link: the convolution.
            x: the image.
            sources: parameters of the layer's call.
        """

    @abstractmethod
    def input_grad(self, link: Link, dy: relax.Var, sources: Sequence[relax.Expr]) -> relax.Var:
        """Gradient to a convolution's input."""

    @abstractmethod
    def product_sums(self, link: Link, x: relax.Var, dy: relax.Var) -> relax.Var:
        """Gradient of a convolution's weight [taps, Cin, Cout]; x may be spikes as bytes."""

    @abstractmethod
    def core_grads(self, map_: WeightMap, channels: tuple[int, int], dtype: str) -> PrimFunc:
        """The function (dw [taps, *channels], gradients of the sources…)."""

    def weight_grads(self, link: Link, x: relax.Var, dy: relax.Var) -> list[relax.Var]:
        """Gradients of a convolution's parameters, in the order of ``link.sources``."""
        return self.source_grads(link, self.product_sums(link, x, dy))

    def source_grads(self, link: Link, dw: relax.Var) -> list[relax.Var]:
        """Gradients of a convolution's parameters, from that of its weight."""
        dtype, (_, cin, cout) = dtype_of(dw), _shape(dw)
        return self.call(
            ("core_grads", link.weight, (cin, cout), dtype),
            lambda: self.core_grads(link.weight, (cin, cout), dtype),
            [dw],
            link.weight.shapes,
            dtype,
        )

    def call(
        self,
        key: tuple,
        make: Callable[[], PrimFunc],
        args: Sequence[relax.Expr],
        shapes: Sequence[Sequence[int]],
        dtype: str | Sequence[str],
    ) -> list[relax.Var]:
        """Call the kernel that ``make`` makes, unless one of that key is there; its results.

        ``dtype`` is that of the results, or of each.
        """
        if key not in self._made:
            self._made[key] = self.bb.add_func(make(), str(key[0]))
        dtypes = [dtype] * len(shapes) if isinstance(dtype, str) else dtype
        types = [
            relax.TensorType([int(s) for s in shape], d)
            for shape, d in zip(shapes, dtypes, strict=True)
        ]
        out = relax.call_tir(self._made[key], list(args), types if len(types) > 1 else types[0])
        out = self.bb.emit(out)
        if len(types) == 1:
            return [out]
        return [self.bb.emit(relax.TupleGetItem(out, i)) for i in range(len(types))]

    # -- normalisation -----------------------------------------------------------------------

    def batch_norm_stats(
        self,
        x: relax.Var,
        running: Sequence[relax.Expr],
        epsilon: float,
        momentum: float,
        repeats: int = 1,
    ) -> list[relax.Var]:
        """(new running mean, new running variance, mean, 1/σ)."""
        shape, dtype = _shape(x), dtype_of(x)
        return self.call(
            ("batch_norm_stats", shape, dtype, epsilon, momentum, repeats),
            lambda: batch_norm_stats(self.arrays(shape, dtype), epsilon, momentum, repeats),
            [x, *running],
            [shape[-1:]] * 4,
            dtype,
        )

    def batch_norm_apply(
        self, x: relax.Var, channel: Sequence[relax.Expr], side: relax.Var | None = None
    ) -> relax.Var:
        """Normalised x; ``channel`` is (gamma, beta, mean, 1/σ); ``side`` is added."""
        shape, dtype = _shape(x), dtype_of(x)
        return self.call(
            ("batch_norm_apply", shape, dtype, side is None),
            lambda: batch_norm_apply(self.arrays(shape, dtype), side is not None),
            [x, *channel, *([] if side is None else [side])],
            [shape],
            dtype,
        )[0]

    def batch_norm_sums(
        self, x: relax.Var, channel: Sequence[relax.Expr], dy: relax.Var
    ) -> list[relax.Var]:
        """(dgamma, dbeta); ``channel`` is (mean, 1/σ)."""
        shape, dtype = _shape(x), dtype_of(x)
        return self.call(
            ("batch_norm_sums", shape, dtype),
            lambda: batch_norm_sums(self.arrays(shape, dtype)),
            [x, *channel, dy],
            [shape[-1:]] * 2,
            dtype,
        )

    def batch_norm_dx(self, x: relax.Var, args: Sequence[relax.Expr]) -> relax.Var:
        """Gradient to x; ``args`` are (gamma, mean, 1/σ, dy, dgamma, dbeta)."""
        shape, dtype = _shape(x), dtype_of(x)
        return self.call(
            ("batch_norm_dx", shape, dtype),
            lambda: batch_norm_dx(self.arrays(shape, dtype)),
            [x, *args],
            [shape],
            dtype,
        )[0]

    # -- neurons -----------------------------------------------------------------------------

    def lif(self, neuron: TrainedNeuron, args: Sequence[relax.Expr]) -> list[relax.Var]:
        """(spikes[, membrane][, v_last]) of :func:`lif_train_forward`."""
        shape, dtype = _shape(args[0]), dtype_of(args[0])
        shapes, dtypes = [shape], [SPIKE_BYTES if neuron.compact else dtype]
        if neuron.membrane:
            shapes.append(shape)
        if neuron.v_last:
            shapes.append(_state(shape, neuron))
        return self.call(
            ("lif_forward", neuron, shape, dtype),
            lambda: lif_train_forward(neuron, self.arrays(shape, dtype, neuron.steps)),
            args,
            shapes,
            dtypes + [dtype] * (len(shapes) - 1),
        )

    def lif_backward(self, neuron: TrainedNeuron, args: Sequence[relax.Expr]) -> list[relax.Var]:
        """([dx][, dv0][, dgamma, dbeta]) of :func:`lif_train_backward`."""
        shape, dtype = _shape(args[0]), dtype_of(args[0])
        shapes = [shape] if neuron.dx else []
        shapes += [_state(shape, neuron)] if neuron.dv0 else []
        shapes += [shape[-1:]] * (2 if neuron.sums else 0)
        return self.call(
            ("lif_backward", neuron, shape, dtype),
            lambda: lif_train_backward(neuron, self.arrays(shape, dtype, neuron.steps)),
            args,
            shapes,
            dtype,
        )


def dtype_of(x: relax.Expr) -> str:
    """Of a tensor's elements."""
    return str(x.ty.dtype)


def _shape(x: relax.Expr) -> tuple[int, ...]:
    return tuple(known_dims(x))


def _state(shape: tuple[int, ...], neuron: TrainedNeuron) -> tuple[int, ...]:
    return (shape[0], shape[1] // neuron.steps, *shape[2:])
