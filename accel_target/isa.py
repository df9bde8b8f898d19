"""The accelerator's instruction set: opcodes, flags, number formats and the binary records.

An instruction is 32 bytes (:data:`INSTRUCTION`). What it works on is described by rows of tables
that travel with the program: operands (:data:`DESCRIPTOR`), geometries of convolutions and pools
(:data:`GEOMETRY` with :data:`TAP`), and scalars. ``docs/accelerator.md`` has the meaning of each
field and operation.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

__all__ = [
    "DESCRIPTOR",
    "DRAM",
    "GEOMETRY",
    "INSTRUCTION",
    "LIF_FORMS",
    "LIF_RESETS",
    "LIF_TIMINGS",
    "MAX_OFFSET",
    "MAX_UNITS",
    "NONE",
    "SCALARS",
    "TAP",
    "VERSION",
    "Flag",
    "Format",
    "Level",
    "Op",
    "Pool",
    "Reduce",
    "UnitKind",
    "Vec",
    "memory_id",
]

VERSION = 2
"""Version of the instruction set; a program of another version is refused."""

MAX_UNITS = 16
"""Units that the dependency masks can name."""

NONE = 0xFFFFFFFF
"""Operand field: no operand."""

DRAM = 0
"""Memory number of the DRAM; buffers follow, three a cluster (:func:`memory_id`)."""


class Op(IntEnum):
    """Operations."""

    END = 0  # the program's last instruction, on every unit once
    SYNC = 1  # only takes and gives tokens
    LOAD = 2  # dst (buffer) = src0 (DRAM)
    STORE = 3  # dst (DRAM) = src0 (buffer)
    XFER = 4  # dst (buffer of another cluster) = src0
    GEMM = 5  # dst = conv(src0, weight src1)
    WGRAD = 6  # dst += Σ over pixels src0 ⊗ src1
    VEC = 7  # dst = f(src0[, src1]) elementwise, src1 broadcast or a scalar
    RED = 8  # dst (+)= reduction of src0 over the axes in which dst has size 1
    LIF = 9  # dst spikes, dst1 surrogate derivative = neuron over the frames of src0
    LIFB = 10  # dst = gradient; src0 gradient of spikes, src1 spikes, src2 surrogate derivative
    BN_STAT = 11  # dst rows (mean, 1/σ) of src0 rows (Σx, Σx²)
    BN_RUN = 12  # dst = running statistic; src0 rows (Σx, Σx²), src1 the old one
    BN_APPLY = 13  # dst = (src0 - mean)/σ · γ + β; src1 rows (mean, 1/σ, γ, β)
    BN_SUMS = 14  # dst rows += (Σ dy, Σ dy·x̂); src0 dy, src1 x, src2 rows (mean, 1/σ)
    BN_GRAD = 15  # dst = dx; src0 dy, src1 x, src2 rows (mean, 1/σ, γ, Σ dy, Σ dy·x̂)
    POOL = 16  # dst = mean, maximum or sum of src0 over a window
    POOLB = 17  # its gradient; src0 dy, src1 x (maximum)


class Flag(IntFlag):
    """Bits 8–15 of the field ``flags``; the low byte is the operation's kind."""

    ACC = 0x100  # add to what dst holds
    BINARY = 0x200  # src0 holds spikes: accumulate the weights of those that are 1
    TRANSPOSE = 0x400  # GEMM towards the input: taps turned round, weight transposed
    HALF = 0x800  # the result times ½
    LOCKSTEP = 0x1000  # GEMM, WGRAD: all four clusters as one array
    TURNED = 0x4000  # GEMM, WGRAD: M along the array's columns, N along its rows
    STATE = 0x2000  # LIF: src1 is the membrane before the first frame; dst1 the last one


class Vec(IntEnum):
    """Kinds of VEC."""

    COPY = 0
    ADD = 1
    SUB = 2
    MUL = 3
    DIV = 4
    MAX = 5
    MIN = 6
    NEG = 7
    EXP = 8
    LOG = 9
    SQRT = 10
    ABS = 11
    EQUAL = 12  # 1 where the operands are equal
    INDEX = 13  # the channel's number, for one-hot vectors
    RSUB = 14  # src1 - src0
    RDIV = 15  # src1 / src0
    POW = 16


class Reduce(IntEnum):
    """Kinds of RED."""

    SUM = 0
    SUM_SQUARES = 1
    MAX = 2


class Pool(IntEnum):
    """Kinds of POOL and POOLB."""

    MEAN = 0  # zeros outside the image count
    MAX = 1
    SUM = 2
    FLAT = 3  # dst (c, k) is channel c at tap k: an image in the network's order of features


class Format(IntEnum):
    """Number formats of operands; :class:`~ttsnn.accel_target.arch.Words` has their bits."""

    SPIKE = 0
    WEIGHT = 1
    ACTIVATION = 2
    ACCUMULATOR = 3
    GRADIENT = 4
    STATISTIC = 5  # sums and loss: 32 bits


class UnitKind(IntEnum):
    """What a unit is."""

    LOAD = 0
    STORE = 1
    VECTOR = 2
    LIF = 3
    GRADIENT = 4
    OPTIMIZER = 5
    COMPUTE = 6
    LINK = 7


class Level(IntEnum):
    """Buffers of a cluster."""

    WEIGHT = 0
    INPUT = 1
    OUTPUT = 2


def memory_id(cluster: int, level: Level) -> int:
    """Number of a cluster's buffer."""
    return 1 + 3 * cluster + int(level)


LIF_RESETS = ("hard", "soft", "none")
LIF_TIMINGS = ("after_fire", "before_decay", "after_decay")
LIF_FORMS = ("multiply", "euler", "euler_raw_input")

_U1, _U2, _U4, _I2, _I4 = "<u1", "<u2", "<u4", "<i2", "<i4"

INSTRUCTION = np.dtype(
    [
        ("op", _U1),
        ("unit", _U1),
        ("pop", _U2),
        ("push", _U2),
        ("tag", _U2),
        ("dst", _U4),
        ("dst1", _U4),
        ("src0", _U4),
        ("src1", _U4),
        ("src2", _U4),
        ("attr", _U2),
        ("flags", _U2),
    ]
)
"""32 bytes. ``pop`` bit u: take one token that unit u gave; ``push`` bit u: give one to unit u.
``tag``: row of the tag table (layer, phase, role). ``dst`` … ``src2``: rows of the descriptor
table. ``attr``: row of the geometry table (GEMM, WGRAD, POOL) or of the scalars (others)."""

DESCRIPTOR = np.dtype(
    [
        ("memory", _U1),
        ("format", _U1),
        ("step", _U2),
        ("address", _U4),
        ("frames", _U2),
        ("rows", _U2),
        ("width", _U2),
        ("channels", _U4),
        ("f0", _U2),
        ("f", _U2),
        ("h0", _U2),
        ("h", _U2),
        ("w0", _U2),
        ("w", _U2),
        ("c0", _U4),
        ("c", _U4),
    ]
)
"""38 bytes: a box of a tensor [frames, height, width, channels]. In DRAM ``address`` is the number
of the tensor, ``frames`` … ``channels`` its sizes, and frames are ``f0 + i · step``. In a buffer
``address`` is the first byte of an allocation of those sizes; row r of the tensor lies in slot
``r mod rows``."""

GEOMETRY = np.dtype(
    [
        ("stride_h", _I4),
        ("stride_w", _I4),
        ("tap0", _I4),
        ("taps", _I4),
        ("in_h", _I4),
        ("in_w", _I4),
        ("out_h", _I4),
        ("out_w", _I4),
    ]
)
"""32 bytes: output pixel (i, j) reads input pixels (i · stride_h + dy, j · stride_w + dx) for the
taps (dy, dx) in rows ``tap0`` … ``tap0 + taps`` of the tap table; zero outside the image."""

TAP = np.dtype([("dy", _I2), ("dx", _I2)])
MAX_OFFSET = 32767
"""The farthest that a tap reads from its output's pixel, rows or columns."""

SCALARS = np.dtype(("<f8", (8,)))

for _record, _size in ((INSTRUCTION, 32), (DESCRIPTOR, 38), (GEOMETRY, 32)):
    assert _record.itemsize == _size
