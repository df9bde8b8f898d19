"""Membrane-shortcut spiking residual networks (MS-ResNet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ttsnn.errors import ModelImportError
from ttsnn.models.lif import LIF
from ttsnn.models.time_axis import SpikingNetwork, TimeModule

__all__ = ["MSBlock", "MSResNet", "ms_resnet18", "ms_resnet34"]

DOWNSAMPLES = ("stride", "maxpool")


def scaled_norm(channels: int, scale: float) -> nn.BatchNorm2d:
    """Batch normalisation whose weight starts at ``scale`` (threshold-dependent BN)."""
    norm = nn.BatchNorm2d(channels)
    nn.init.constant_(norm.weight, scale)
    return norm


class MSBlock(TimeModule):
    """Basic block: LIF → conv → BN → LIF → conv → BN, added to the membrane stream.

    [T, N, Cin, H, W] → [T, N, Cout, ⌈H/stride⌉, ⌈W/stride⌉]. Where the shape changes, the
    shortcut is a strided 1×1 convolution with BN.

    Args:
        downsample: ``"stride"`` (the first convolution strides) or ``"maxpool"`` (it runs at
            full resolution, then 2×2 max-pooling).
        lif: settings of the neurons, see :class:`~ttsnn.models.LIF`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        downsample: str,
        lif: Mapping[str, Any],
    ) -> None:
        super().__init__()
        pooled = stride != 1 and downsample == "maxpool"
        self.lif1 = LIF(**lif)
        threshold = self.lif1.attrs.v_threshold
        first = 1 if pooled else stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, first, 1, bias=False)
        # ceil_mode: the same size as a strided convolution gives, also for odd sizes
        self.pool = nn.MaxPool2d(stride, ceil_mode=True) if pooled else None
        self.bn1 = scaled_norm(out_channels, threshold)
        self.lif2 = LIF(**lif)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = scaled_norm(out_channels, 0.2 * threshold)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                scaled_norm(out_channels, threshold),
            )

    def forward(self, x: Tensor) -> Tensor:
        pool = () if self.pool is None else (self.pool,)
        y = self.over_time(self.lif1(x), self.conv1, *pool, self.bn1)
        y = self.over_time(self.lif2(y), self.conv2, self.bn2)
        return y + (x if self.shortcut is None else self.over_time(x, *self.shortcut))


class MSResNet(SpikingNetwork):
    """MS-ResNet: 3×3 stem to 64 channels, four stages of basic blocks, one linear head.

    Static images [N, C, H, W] or event frames [T, N, C, H, W] → logits [N, classes]. The head
    averages the last spikes over space and time; the classifier then runs once.

    Args:
        blocks: number of blocks in each stage; a stage has twice the channels of the one before
            and halves the resolution.
        input_shape: (C, H, W).
        num_classes: number of logits.
        T: number of timesteps.
        static_input: whether the inputs are meant to be static images.
        width: channels of the stem and of the first stage.
        downsample: ``"stride"`` or ``"maxpool"``, see :class:`MSBlock`.
        lif: settings of all neurons, see :class:`~ttsnn.models.LIF`; default TT-SNN's.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        input_shape: tuple[int, int, int],
        num_classes: int,
        T: int = 4,
        static_input: bool = True,
        *,
        width: int = 64,
        downsample: str = "stride",
        lif: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(T, input_shape, num_classes, static_input)
        if downsample not in DOWNSAMPLES:
            raise ModelImportError(
                f"unknown downsample {downsample!r}; use one of {', '.join(DOWNSAMPLES)}"
            )
        lif = dict(lif or {})
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, 1, 1, bias=False)
        self.bn1 = scaled_norm(width, LIF(**lif).attrs.v_threshold)
        channels = width
        self.layers = [f"layer{i + 1}" for i in range(len(blocks))]
        for i, count in enumerate(blocks):
            out = width * 2**i
            stage = nn.Sequential()
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(MSBlock(channels, out, stride, downsample, lif))
                channels = out
            self.add_module(self.layers[i], stage)
        self.lif = LIF(**lif)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.over_time(self.with_time(x), self.conv1, self.bn1)
        for name in self.layers:
            x = getattr(self, name)(x)
        return self.read_out(self.lif(x).mean((-2, -1)), self.fc)


def ms_resnet18(*args: Any, **kwargs: Any) -> MSResNet:
    """:class:`MSResNet` with [2, 2, 2, 2] blocks."""
    return MSResNet((2, 2, 2, 2), *args, **kwargs)


def ms_resnet34(*args: Any, **kwargs: Any) -> MSResNet:
    """:class:`MSResNet` with [3, 4, 6, 3] blocks."""
    return MSResNet((3, 4, 6, 3), *args, **kwargs)
