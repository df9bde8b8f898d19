"""What single layers cost, worked out by hand: oracles for the simulator, sharing no code with it.

Multiply-accumulates are those of the dense loops whose operands lie inside the image: zeros of the
padding are not there to be multiplied.
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


def pairs(
    size: tuple[int, int],
    taps: list[tuple[int, int]],
    strides: tuple[int, int],
    out: tuple[int, int],
) -> int:
    """Output positions × taps that lie inside the image.

    Args:
        size: of the image.
        taps: offsets (row, column) of the taps from an output's position times the strides.
        strides: of rows and columns.
        out: positions of the output.
    """
    count = 0
    for oy in range(out[0]):
        for ox in range(out[1]):
            for dy, dx in taps:
                y, x = oy * strides[0] + dy, ox * strides[1] + dx
                count += 0 <= y < size[0] and 0 <= x < size[1]
    return count


COLUMN = [(-1, 0), (0, 0), (1, 0)]
ROW = [(0, -1), (0, 0), (0, 1)]
CROSS = [*ROW, (-1, 0), (1, 0)]
POINT = [(0, 0)]


def chain_macs(
    mode: str, cin: int, rank: int, cout: int, size: tuple[int, int], stride: int = 1
) -> dict[str, int]:
    """Core → forward MACs of a 3×3 TT convolution of one sample and timestep.

    Strides sit on the spatial cores: g1 sees the whole input, g4 the output. ``stt``: g2 strides
    the rows, g3 the columns; ``ptt``: both branches stride both, and lie as a cross of 5 taps in
    one core (``cross``); ``branches``: ptt with its branches apart; ``half``, the other timesteps
    of htt: g1 is strided itself.
    """
    out = out_size(size, 3, stride)
    last = {"g4": rank * cout * out[0] * out[1]}
    if mode == "half":
        return {"g1": cin * rank * out[0] * out[1]} | last
    first = {"g1": cin * rank * size[0] * size[1]}
    square, both = rank * rank, (stride, stride)
    if mode == "stt":
        half = (out[0], size[1])
        return {
            **first,
            "g2": square * pairs(size, COLUMN, (stride, 1), half),
            "g3": square * pairs(half, ROW, (1, stride), out),
            **last,
        }
    if mode == "ptt":
        return first | {"cross": square * pairs(size, CROSS, both, out)} | last
    assert mode == "branches"
    return {
        **first,
        "g2": square * pairs(size, COLUMN, both, out),
        "g3": square * pairs(size, ROW, both, out),
        **last,
    }


def linear_chain_macs(
    out_factors: tuple[int, ...], in_factors: tuple[int, ...], ranks: tuple[int, ...]
) -> dict[str, int]:
    """Core → forward MACs of a TT linear layer of one sample and timestep.

    Core k sums over n_k and its first rank, for each of the n that are left, the m that are there
    already, its own m and its second rank.
    """
    full = (1, *ranks, 1)
    out = {}
    for k, (m, n) in enumerate(zip(out_factors, in_factors)):
        count = full[k] * n * m * full[k + 1]
        for other in in_factors[k + 1 :] + out_factors[:k]:
            count *= other
        out[f"g{k + 1}"] = count
    return out


def conv_macs(cin: int, cout: int, kernel: int, size: tuple[int, int], stride: int = 1) -> int:
    """Forward MACs of a square convolution of one sample and timestep, padding kernel // 2."""
    out = out_size(size, kernel, stride)
    return cin * cout * pairs(size, square_taps(kernel), (stride, stride), out)


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
