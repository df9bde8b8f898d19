"""Layer lists written by hand."""

from __future__ import annotations

import numpy as np

from ttsnn.plans import LayerInfo

__all__ = ["ms_resnet", "small"]


def ms_resnet(
    blocks: tuple[int, ...], in_channels: int, size: int, T: int, classes: int
) -> list[LayerInfo]:
    """MS-ResNet for CIFAR-like inputs: basic blocks, 1×1 shortcuts where the shape changes."""
    infos = [LayerInfo("conv1", "conv2d", (64, in_channels, 3, 3), (size, size), T)]
    before = 64
    for stage, (channels, count) in enumerate(zip((64, 128, 256, 512), blocks)):
        side = size >> stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            for conv, cin in (("conv1", before), ("conv2", channels)):
                shape = (channels, cin, 3, 3)
                infos.append(LayerInfo(f"{name}.{conv}", "conv2d", shape, (side, side), T))
            if before != channels:
                shape = (channels, before, 1, 1)
                infos.append(LayerInfo(f"{name}.shortcut", "conv2d", shape, (side, side), T))
            before = channels
    return [*infos, LayerInfo("fc", "linear", (classes, 512), bias=classes)]


def small(seed: int = 0) -> list[LayerInfo]:
    """A stem, a convolution, a 1×1, a grouped one, an even kernel, and two linear layers."""
    rng = np.random.default_rng(seed)

    def conv(name, cout, cin, k, groups=1):
        weight = rng.normal(size=(cout, cin // groups, k, k))
        return LayerInfo(
            name, "conv2d", weight.shape, (8, 8), 4, bias=cout, groups=groups, weight=weight
        )

    def linear(name, out, size, steps):
        weight = rng.normal(size=(out, size))
        return LayerInfo(name, "linear", weight.shape, steps=steps, bias=out, weight=weight)

    return [
        conv("stem", 8, 3, 3),
        conv("body.conv1", 12, 8, 3),
        conv("body.conv2", 12, 12, 5),
        conv("shortcut", 12, 8, 1),
        conv("grouped", 12, 12, 3, groups=4),
        conv("even", 12, 12, 2),
        linear("hidden", 24, 48, 4),
        linear("head", 10, 24, 1),
    ]
