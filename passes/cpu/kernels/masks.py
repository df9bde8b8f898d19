"""Spikes of a pixel as bits: 64 channels in a word, the lowest bit first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx import IntImm, Var

from ttsnn.passes.cpu.kernels.register_tile import chunks
from ttsnn.passes.tir.body import Body, load, vector

__all__ = ["MASK", "WORD", "active", "mask_words", "spike_mask"]

MASK = "uint64"
"""dtype of a word."""

WORD = 64
"""Channels of a word."""


def mask_words(channels: int) -> int:
    """Words that the spikes of a pixel take."""
    return -(-channels // WORD)


def spike_mask(x: Var, at: Expr, count: int) -> Expr:
    """The word of ``count`` bytes, each 0 or 1, from ``x[at]`` on; at most 64 of them.

    A vector of comparisons *is* a mask: LLVM makes one instruction of it (``vptestmb``, or two
    ``vpmovmskb`` and so on).
    """
    word: Expr = IntImm(MASK, 0)
    for c, n in chunks(count, WORD):
        ones = load(x, vector(at + c, n))
        if n >= 8:
            zero = tirx.Broadcast(IntImm("uint8", 0), n)
            # TVM's own reinterpret() counts a boolean as 8 bits
            bits = tirx.call_intrin(f"uint{n}", "tirx.reinterpret", ones != zero)
            word = word | _shifted(bits, c)
        else:
            for i in range(n):
                word = word | _shifted(load(x, at + c + i), c + i)
    return word


def _shifted(bits: Expr, by: int) -> Expr:
    wide = bits.astype(MASK)
    return tirx.shift_left(wide, IntImm(MASK, by)) if by else wide


@contextmanager
def active(b: Body, word: Expr) -> Iterator[Expr]:
    """A loop over the bits of a word that are one; yields the place of each, in order."""
    rest = b.alloc(1, MASK, "rest", scope="local")
    b.store(rest, word, 0)
    with b.repeat(load(rest, 0) != IntImm(MASK, 0)):
        now = b.bind(load(rest, 0), "now")
        nonzero = IntImm("bool", 1)
        place = tirx.call_llvm_pure_intrin(MASK, "llvm.cttz.i64", now, nonzero)
        b.store(rest, now & (now - IntImm(MASK, 1)), 0)
        yield b.bind(place.astype(b.index), "bit")
