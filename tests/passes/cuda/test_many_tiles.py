"""Tiles as arrays against each of them as integers."""

from __future__ import annotations

from dataclasses import asdict
from itertools import product
from math import ceil

import numpy as np
import pytest

from ttsnn.passes.cuda.kernels.conv_tile import ConvTile
from ttsnn.passes.cuda.kernels.grad_tile import GradTile
from ttsnn.passes.cuda.kernels.many import at, axes, ceil_div, combined, larger, least


def conv_tiles(pack):
    pixels, channels, depth, rows, split = axes([16, 32], [20, 64], [8, 12, 20], [2, 4], [1, 3])
    return combined(ConvTile(3, pixels, channels, depth, rows, 4, split, pack))


def grad_tiles(pack):
    taps, rows, columns, own, split = axes([1, 3], [20, 64], [12, 36], [4, 8], [1, 5])
    return combined(GradTile(taps, rows, columns, own, 4, 16, split, pack=pack))


CASES = [(conv_tiles, 1), (conv_tiles, 2), (grad_tiles, 0), (grad_tiles, 2)]


@pytest.mark.parametrize(("make", "pack"), CASES)
def test_formulas(make, pack):
    """Every property of each tile, and the shared memory, which takes the larger of two."""
    tiles = make(pack)
    names = [n for n, v in vars(type(tiles)).items() if isinstance(v, property)]
    assert len(names) >= 4
    count = tiles.rows.size
    for i in range(count):
        one = least(tiles, np.arange(count) != i)
        assert all(type(value) is int for value in asdict(one).values())
        for name in names:
            found, want = getattr(tiles, name), getattr(one, name)
            assert np.array_equal(np.array(found)[..., i], want), name
        if isinstance(one, ConvTile):
            assert tiles.shared_bytes(4)[i] == one.shared_bytes(4)
        else:
            assert tiles.shared_elements()[i] == one.shared_elements()
            assert one.down == ceil(one.height / (one.own_rows * (8 if pack else 1)))


def test_indices():
    """Each with each, in the order of the axes; a mask keeps what is an integer."""
    tiles = conv_tiles(1)
    listed = zip(tiles.pixels, tiles.channels, tiles.depth, tiles.rows, tiles.split, strict=True)
    assert list(listed) == list(product([16, 32], [20, 64], [8, 12, 20], [2, 4], [1, 3]))
    few = at(tiles, tiles.pixels == 32)
    assert few.time == 3
    assert few.depth.tolist() == tiles.depth[24:].tolist()


def test_rounding():
    a, b = axes(range(60), range(1, 30))
    assert np.array_equal(ceil_div(a, b), np.ceil(a / b))
    assert np.array_equal(larger(a, b), np.where(a > b, a, b))
    assert (ceil_div(7, 2), larger(3, 5)) == (4, 5)
    assert type(larger(3, 5)) is int
