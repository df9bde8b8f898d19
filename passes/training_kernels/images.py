"""Values of a training program that are held channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tvm import relax

from ttsnn.passes.shapes import known_dims
from ttsnn.passes.training_kernels.lif_forward import TrainedNeuron

__all__ = ["BatchNormGrad", "Image", "Lazy", "NeuronGrad", "Normalised"]


@dataclass(frozen=True)
class Image:
    """A tensor [*lead, C, H, W] of the program.

    Attributes:
        expr: the same values as [1, R, H, W, C], R being the product of ``lead``; spikes may be
            bytes.
        lead: leading sizes, (T · N,) or (T, N).
    """

    expr: relax.Var
    lead: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """R, H, W, C."""
        _, r, h, w, c = known_dims(self.expr)
        return r, h, w, c

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the program's tensor."""
        _, h, w, c = self.sizes
        return (*self.lead, c, h, w)

    def reshaped(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """``lead`` of a reshape that leaves C, H, W alone; None for any other."""
        if len(shape) < 4 or tuple(shape[-3:]) != self.shape[-3:]:
            return None
        lead = tuple(shape[:-3])
        return lead if prod(lead) == prod(self.lead) else None


@dataclass(frozen=True)
class Normalised:
    """A batch norm's result, or its sum with a tensor, that its reader computes itself.

    Attributes:
        x: what is normalised.
        channel: (gamma, beta, mean, 1/σ).
        side: what is added to the result.
    """

    x: Image
    channel: tuple[relax.Expr, ...]
    side: relax.Var | None = None

    @property
    def key(self) -> tuple:
        """Equal for equal values, whatever their leading sizes."""
        return ("normalised", self.x.expr, self.channel, self.side)


@dataclass(frozen=True)
class NeuronGrad:
    """The gradient of what enters a neuron, or its sum with a tensor, not computed yet.

    Whoever reads it may have more results from the same pass.

    Attributes:
        x: what entered the neuron.
        neuron: the kernel so far.
        args: its arguments, up to the gradient of the last membrane.
        side: what is added to the result.
    """

    x: Image
    neuron: TrainedNeuron
    args: tuple[relax.Expr, ...]
    side: relax.Var | None = None

    @property
    def key(self) -> tuple:
        """Equal for equal values, whatever their leading sizes."""
        return ("neuron_grad", self.neuron, self.args, self.side)


@dataclass(frozen=True)
class BatchNormGrad:
    """The gradient to a batch norm's input, not computed yet.

    Attributes:
        x: the batch norm's input.
        args: (gamma, mean, 1/σ, dy, dgamma, dbeta), dy being an image; with ``neuron`` those of
            the neuron's kernel.
        neuron: the kernel of the neuron behind the batch norm, if that computes it.
    """

    x: Image
    args: tuple[relax.Expr, ...]
    neuron: TrainedNeuron | None = None

    @property
    def key(self) -> tuple:
        """Equal for equal values, whatever their leading sizes."""
        return ("batch_norm_grad", self.x.expr, self.args, self.neuron)


Lazy = Normalised | NeuronGrad | BatchNormGrad
"""A value that is computed when something reads it, together with what the reader computes."""
