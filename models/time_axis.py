"""Running layers without state over a time axis: folded into the batch, or step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ttsnn.errors import ModelImportError

__all__ = [
    "TIME_EXECUTIONS",
    "TIME_NAMES",
    "SpikingNetwork",
    "TimeModule",
    "set_time_execution",
    "timesteps_of",
]

TIME_EXECUTIONS = ("folded", "loop")
TIME_NAMES = ("T", "timesteps", "time_steps", "num_steps", "n_steps", "num_timesteps")
"""Attributes that networks keep their number of timesteps in."""

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def timesteps_of(module: nn.Module) -> int | None:
    """T as the network says it in one of :data:`TIME_NAMES`; None where it doesn't."""
    for name in TIME_NAMES:
        value = getattr(module, name, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


class TimeModule(nn.Module):
    """A module whose inputs and outputs are [T, N, …].

    ``time_execution`` says how :meth:`over_time` runs layers that keep no state: ``"folded"``
    once on [T·N, …], or ``"loop"`` once per timestep, as published code does. Batch
    normalisation sees all timesteps at once in both, so that its statistics are the same.
    """

    time_execution = "folded"

    def over_time(self, x: Tensor, *layers: nn.Module) -> Tensor:
        """Apply layers without state one after the other to [T, N, …]."""
        steps, batch = x.shape[:2]
        layer: Any
        if self.time_execution == "loop":
            for layer in layers:
                if isinstance(layer, _NORMS):
                    x = layer(x.flatten(0, 1)).reshape(x.shape)
                elif getattr(layer, "takes_time", False):
                    x = torch.stack([layer.step(x[t], t, steps) for t in range(steps)])
                else:
                    x = torch.stack([layer(x[t]) for t in range(steps)])
            return x
        folded = False
        for layer in layers:
            wanted = not getattr(layer, "takes_time", False)
            if wanted != folded:
                x = x.flatten(0, 1) if wanted else x.reshape(steps, batch, *x.shape[1:])
                folded = wanted
            x = layer(x)
        return x.reshape(steps, batch, *x.shape[1:]) if folded else x


class SpikingNetwork(TimeModule):
    """Base of the networks here: static images [N, C, H, W] or event frames [T, N, C, H, W].

    Attributes:
        T: number of timesteps.
        input_shape: (C, H, W) of one image or frame.
        static_input: whether the network is meant for static images.
        logits: ``"mean"``: the mean over time, [N, classes]; ``"steps"``: those of every
            timestep, [T, N, classes], as the TET loss wants them. May be set at any time.
    """

    logits = "mean"

    def __init__(
        self, T: int, input_shape: tuple[int, int, int], num_classes: int, static_input: bool
    ) -> None:
        super().__init__()
        if min(T, num_classes, *input_shape) < 1:
            raise ModelImportError(
                f"{type(self).__name__}: T and sizes must be at least 1, "
                f"got T={T}, input {list(input_shape)} and {num_classes} classes"
            )
        self.T, self.input_shape, self.static_input = T, input_shape, static_input

    def read_out(self, features: Tensor, layer: nn.Module) -> Tensor:
        """Logits of the last linear layer from features [T, N, F], see :attr:`logits`.

        A linear layer commutes with the mean, so the mean comes first: one product, not T.
        """
        if self.logits == "steps":
            return layer(features)
        if self.logits != "mean":
            raise ModelImportError(
                f"{type(self).__name__}: logits must be 'mean' or 'steps', got {self.logits!r}"
            )
        return layer(features.mean(0))

    def with_time(self, x: Tensor) -> Tensor:
        """The input with its time axis: a static image is repeated T times (a view).

        Raises:
            ModelImportError: neither [N, C, H, W] nor [T, N, C, H, W] with this network's sizes.
        """
        if x.dim() not in (4, 5) or tuple(x.shape[-3:]) != self.input_shape:
            c, h, w = self.input_shape
            raise ModelImportError(
                f"{type(self).__name__}: input must be [N, {c}, {h}, {w}] or "
                f"[{self.T}, N, {c}, {h}, {w}], got {list(x.shape)}"
            )
        if x.dim() == 4:
            return x.unsqueeze(0).expand(self.T, *x.shape)
        if x.shape[0] != self.T:
            raise ModelImportError(
                f"{type(self).__name__}: input {list(x.shape)} has {x.shape[0]} timesteps, the "
                f"network has T={self.T}; create it with that T"
            )
        return x


def set_time_execution(model: nn.Module, mode: str) -> nn.Module:
    """Choose how a network runs its layers over time, in place; returns the network.

    Args:
        mode: ``"folded"`` (time in the batch, fast) or ``"loop"`` (per timestep).

    Raises:
        ModelImportError: unknown mode, or a network without :class:`TimeModule`.
    """
    if mode not in TIME_EXECUTIONS:
        raise ModelImportError(
            f"unknown time execution {mode!r}; use one of {', '.join(TIME_EXECUTIONS)}"
        )
    modules = [m for m in model.modules() if isinstance(m, TimeModule)]
    if not modules:
        raise ModelImportError(
            f"{type(model).__name__} has no TimeModule, so its time execution cannot be chosen"
        )
    for module in modules:
        module.time_execution = mode
    return model
