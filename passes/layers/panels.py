"""How a packed weight lies in memory: panels of output channels, see ``LayerConfig.packing``."""

from __future__ import annotations

from ttsnn.passes.layers.config import Stage

__all__ = ["packed_channels", "packed_size", "panels"]


def packed_channels(channels: int, lanes: int) -> int:
    """Output channels with the zero channels that fill half a vector."""
    half = max(1, lanes // 2)
    return -(-channels // half) * half


def panels(channels: int, lanes: int, max_vectors: int) -> list[tuple[int, int]]:
    """(first channel, width) of each panel: as few and as equal as they can be.

    Widths are whole vectors, but for half a vector that the last panel may have more.
    """
    width = packed_channels(channels, lanes)
    vectors, rest = divmod(width, lanes)
    count = max(1, -(-width // (max_vectors * lanes)))
    out, start = [], 0
    for i in range(count):
        share = vectors // count + (1 if i < vectors % count else 0)
        size = share * lanes + (rest if i == count - 1 else 0)
        out.append((start, size))
        start += size
    return out


def packed_size(stage: Stage, lanes: int) -> int:
    """Elements of a stage's packed weight."""
    return len(stage.taps) * stage.in_channels * packed_channels(stage.out_channels, lanes)
