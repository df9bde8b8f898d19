"""What single layers cost, worked out by hand: oracles for the simulator, sharing no code with it.

Multiply-accumulates are those of the dense loops: taps that lie outside the image count too, as
they do everywhere in ttsnn.
"""

from __future__ import annotations

from math import ceil

import numpy as np

PHASES = ("forward", "input_gradient", "weight_gradient")


def gemm_cycles(m: int, n: int, k: int, rows: int, cols: int, dataflow: str) -> int:
    """Cycles of [m, k] · [k, n] on a systolic array, folds not overlapped.

    ``os`` keeps m × n outputs in the array: each fold takes k steps, and fills and drains;
    ``ws`` keeps k × n weights: each fold loads them, then streams m rows. Minus 1 these are
    SCALE-Sim's total cycles (2.0 and 3.0.0).
    """
    if dataflow == "os":
        return ceil(m / rows) * ceil(n / cols) * (k + rows + cols - 2)
    assert dataflow == "ws"
    return ceil(k / rows) * ceil(n / cols) * (m + 2 * rows + cols - 2)


def out_size(size: tuple[int, int], kernel: int, stride: int) -> tuple[int, int]:
    """Of a convolution with padding kernel // 2."""
    return tuple((s + 2 * (kernel // 2) - kernel) // stride + 1 for s in size)  # type: ignore[return-value]


def conv_macs(cin: int, cout: int, taps: int, positions: int) -> int:
    """Forward, of one sample and timestep. Each gradient has as many."""
    return cin * cout * taps * positions


def chain_macs(
    mode: str, cin: int, rank: int, cout: int, size: tuple[int, int], stride: int = 1
) -> dict[str, int]:
    """Core → forward MACs of a 3×3 TT convolution of one sample and timestep.

    Strides sit on the spatial cores: g1 sees the whole input, g4 the output. ``stt``: g2 strides
    the rows, g3 the columns; ``ptt``: both branches stride both, and lie as a cross of 5 taps in
    one core (``cross``); ``half``, the other timesteps of htt: g1 is strided itself.
    """
    full = size[0] * size[1]
    height, width = out_size(size, 3, stride)
    out = height * width
    if mode == "stt":
        return {
            "g1": cin * rank * full,
            "g2": 3 * rank * rank * height * size[1],
            "g3": 3 * rank * rank * out,
            "g4": rank * cout * out,
        }
    if mode == "ptt":
        return {"g1": cin * rank * full, "cross": 5 * rank * rank * out, "g4": rank * cout * out}
    assert mode == "half"
    return {"g1": cin * rank * out, "g4": rank * cout * out}


def training_macs(forward: dict[str, int], first: bool = False) -> dict[str, dict[str, int]]:
    """Phase → core → MACs; the network's first layer has no gradient of its input.

    The gradient of a core's input is a convolution with as many products as the core's own, and
    so is that of its weight.
    """
    cores = list(forward)
    return {
        "forward": dict(forward),
        "input_gradient": {c: forward[c] for c in (cores[1:] if first else cores)},
        "weight_gradient": dict(forward),
    }


def active_accumulates(
    spikes: np.ndarray, cout: int, taps: list[tuple[int, int]], stride: int, out: tuple[int, int]
) -> int:
    """Accumulates that a spike-gated convolution executes.

    Args:
        spikes: [T, N, C, H, W], 0 or 1.
        cout: output channels: each spike under the kernel is added once for each.
        taps: offsets (row, column) of the kernel's taps from an output's first input position.
        out: height and width of the output.
    """
    height, width = spikes.shape[-2:]
    count = 0
    for oy in range(out[0]):
        for ox in range(out[1]):
            for dy, dx in taps:
                y, x = oy * stride + dy, ox * stride + dx
                if 0 <= y < height and 0 <= x < width:
                    count += int(spikes[..., y, x].sum())
    return cout * count


def square_taps(kernel: int) -> list[tuple[int, int]]:
    """Taps of a square kernel with padding kernel // 2."""
    pad = kernel // 2
    return [(y - pad, x - pad) for y in range(kernel) for x in range(kernel)]


def packed_bytes(elements: int, bits: int) -> int:
    """Bytes of ``elements`` numbers, packed."""
    return ceil(elements * bits / 8)


def compulsory_dram(
    inputs: dict[str, tuple[int, int]], outputs: dict[str, tuple[int, int]]
) -> tuple[int, int]:
    """Bytes that must be read and written whatever the buffers: each name once.

    Args:
        inputs, outputs: name → (elements, bits each).
    """
    return (
        sum(packed_bytes(*v) for v in inputs.values()),
        sum(packed_bytes(*v) for v in outputs.values()),
    )


def roofline(macs: int, dram_read: int, dram_write: int, pes: int, bytes_per_cycle: float) -> int:
    """Least cycles: every PE busy each cycle, or a DRAM channel busy each cycle."""
    return max(
        ceil(macs / pes), ceil(dram_read / bytes_per_cycle), ceil(dram_write / bytes_per_cycle)
    )
