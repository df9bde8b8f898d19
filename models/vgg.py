"""Spiking VGG and spiking multilayer perceptron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ttsnn.errors import ModelImportError
from ttsnn.models.lif import LIF
from ttsnn.models.resnet import scaled_norm
from ttsnn.models.time_axis import SpikingNetwork, TimeModule

__all__ = ["SpikingMLP", "SpikingVGG", "spiking_mlp", "spiking_vgg9", "spiking_vgg11"]

POOLS = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}

# Channels of the convolutions; "M" pools 2×2.
VGG9 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M")
VGG11 = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")


class _ConvLayer(TimeModule):
    """conv 3×3 → BN → LIF → optional pooling."""

    def __init__(
        self, in_channels: int, out_channels: int, pool: nn.Module | None, lif: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, 1, 1, bias=False)
        self.lif = LIF(**lif)
        self.bn = scaled_norm(out_channels, self.lif.attrs.v_threshold)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        x = self.lif(self.over_time(x, self.conv, self.bn))
        return x if self.pool is None else self.over_time(x, self.pool)


class _LinearLayer(TimeModule):
    """linear → BN → LIF."""

    def __init__(self, in_features: int, out_features: int, lif: Mapping[str, Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.lif = LIF(**lif)
        self.bn = nn.BatchNorm1d(out_features)
        nn.init.constant_(self.bn.weight, self.lif.attrs.v_threshold)

    def forward(self, x: Tensor) -> Tensor:
        return self.lif(self.over_time(x, self.linear, self.bn))


class SpikingVGG(SpikingNetwork):
    """Convolutions 3×3 with BN, LIF and pooling, then linear layers with BN and LIF.

    Static images [N, C, H, W] or event frames [T, N, C, H, W] → logits [N, classes]. The last
    linear layer runs once, on the spikes' mean over time.

    Args:
        channels: output channels of the convolutions in order; ``"M"`` pools 2×2, and is left
            out where the image is already smaller than 2×2.
        input_shape: (C, H, W).
        num_classes: number of logits.
        T: number of timesteps.
        static_input: whether the inputs are meant to be static images.
        hidden: widths of the linear layers before the last.
        pool: ``"max"`` (spikes stay binary) or ``"avg"``.
        lif: settings of all neurons, see :class:`~ttsnn.models.LIF`; default TT-SNN's.
    """

    def __init__(
        self,
        channels: Sequence[int | str],
        input_shape: tuple[int, int, int],
        num_classes: int,
        T: int = 4,
        static_input: bool = True,
        *,
        hidden: Sequence[int] = (1024,),
        pool: str = "max",
        lif: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(T, input_shape, num_classes, static_input)
        if pool not in POOLS:
            raise ModelImportError(f"unknown pool {pool!r}; use one of {', '.join(POOLS)}")
        lif = dict(lif or {})
        current, height, width = input_shape
        self.features = nn.Sequential()
        for item, after in zip(channels, (*channels[1:], None), strict=True):
            if isinstance(item, str):
                continue
            pooling = None
            if after == "M" and min(height, width) >= 2:
                pooling = POOLS[pool](2)
                height, width = height // 2, width // 2
            self.features.append(_ConvLayer(current, item, pooling, lif))
            current = item
        features = current * height * width
        self.classifier = nn.Sequential()
        for size in hidden:
            self.classifier.append(_LinearLayer(features, size, lif))
            features = size
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.with_time(x))
        return self.read_out(self.classifier(x.flatten(2)), self.fc)


class SpikingMLP(SpikingNetwork):
    """Linear layers with BN and LIF on the flattened image, then one linear layer.

    Arguments and results as in :class:`SpikingVGG`; ``hidden`` are the hidden layers' widths.
    """

    def __init__(
        self,
        input_shape: tuple[int, int, int],
        num_classes: int,
        T: int = 4,
        static_input: bool = True,
        *,
        hidden: Sequence[int] = (512, 512),
        lif: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(T, input_shape, num_classes, static_input)
        lif = dict(lif or {})
        features = input_shape[0] * input_shape[1] * input_shape[2]
        self.hidden = nn.Sequential()
        for size in hidden:
            self.hidden.append(_LinearLayer(features, size, lif))
            features = size
        self.fc = nn.Linear(features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.read_out(self.hidden(self.with_time(x).flatten(2)), self.fc)


def spiking_vgg9(*args: Any, **kwargs: Any) -> SpikingVGG:
    """:class:`SpikingVGG` with 7 convolutions and 2 linear layers."""
    return SpikingVGG(VGG9, *args, **kwargs)


def spiking_vgg11(*args: Any, **kwargs: Any) -> SpikingVGG:
    """:class:`SpikingVGG` with 8 convolutions and 3 linear layers."""
    return SpikingVGG(VGG11, *args, **{"hidden": (1024, 1024), **kwargs})


def spiking_mlp(*args: Any, **kwargs: Any) -> SpikingMLP:
    """:class:`SpikingMLP` with two hidden layers of 512."""
    return SpikingMLP(*args, **kwargs)
