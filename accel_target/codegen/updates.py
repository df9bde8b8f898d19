"""Updates of weights where their gradients are: :class:`Updates`, :func:`emit_update`.

The sum of a weight's gradient lies in a buffer while its nest runs, or, where it is streamed, block
by block in the last strip. There the optimizer can work on it: momentum and weight are loaded, and
the new ones are stored. The gradient itself then never is in DRAM.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import prod

from ttsnn.accel_target.codegen.builder import Builder, capacity
from ttsnn.accel_target.codegen.fuse import Group
from ttsnn.accel_target.codegen.graph import Map, Tensor, WGrad
from ttsnn.accel_target.codegen.hazards import BLOCK
from ttsnn.accel_target.codegen.nest import Nest, Param, Value
from ttsnn.accel_target.codegen.tiling import Plan
from ttsnn.accel_target.isa import NONE, Level, Op, UnitKind, memory_id

__all__ = ["Sum", "Updates", "emit_update", "last_visits"]

_COPIES = 2  # a block is loaded while the one before it is worked on

_At = tuple[int, int]
"""Memory and address."""


class Updates:
    """Groups of the optimizer that work on one gradient, and the groups that make it.

    Args:
        groups: of a graph, in order.
    """

    def __init__(self, groups: list[Group]) -> None:
        self._of: dict[int, list[tuple[Tensor, int]]] = {}
        sums: dict[Tensor, list[tuple[int, WGrad]]] = {}
        users: dict[Tensor, set[int]] = {}
        made: dict[Tensor, int] = {}
        for k, g in enumerate(groups):
            for n in g.nodes:
                for t in [*(i.tensor for i in n.reads()), *(r.tensor for r in n.params())]:
                    users.setdefault(t, set()).add(k)
                made |= dict.fromkeys([*(i.tensor for i in n.writes()), *n.makes()], k)
                if isinstance(n, WGrad):
                    for t in n.makes():
                        sums.setdefault(t, []).append((k, n))
        for t, found in sums.items():
            others = users.get(t, set()) - {k for k, _ in found}
            alike = len({n.rows for k, n in found if k == made[t]}) == 1
            if t.role == "temp" and alike and len(others) == 1:
                (k,) = others
                if _follows(groups[k], t, made):
                    self._of.setdefault(made[t], []).append((t, k))

    def of(self, group: int) -> list[tuple[Tensor, int]]:
        """The gradients whose sums a group ends, each with the number of its update's group."""
        return self._of.get(group, [])


def _follows(g: Group, grad: Tensor, made: dict[Tensor, int]) -> bool:
    """Whether a group works element by element on a gradient, with nothing that comes later."""
    own = {i.tensor for n in g.nodes for i in n.writes()}
    for n in g.nodes:
        if (
            not isinstance(n, Map)
            or n.op != Op.VEC
            or any(prod(r.tensor.shape) > 1 for r in n.rows)
        ):
            return False
        if any(i.tensor.shape != grad.shape for i in [*n.reads(), *n.writes()]):
            return False
        given = {*(i.tensor for i in n.reads()), *(r.tensor for r in n.rows)} - own - {grad}
        if any(made.get(t, -1) > made[grad] for t in given):
            return False
    return True


def last_visits(nest: Nest, plan: Plan) -> dict[Param, int]:
    """How often a block of a streamed sum is worked on, where all steps have equal blocks."""
    again = nest.N * (nest.T // plan.frames)
    out: dict[Param, int] = {}
    blocks: dict[Param, set[tuple[int, bool]]] = {}
    for s, p in plan.streams:
        if not p.sums:
            continue
        count = sum(
            i is s or (s.group is not None and i == s.group)
            for strip in plan.flow.strips
            for i, *_ in strip
        )
        out[p] = out.get(p, 0) + again * count
        blocks.setdefault(p, set()).add((plan.streams[s, p], s.ins[0].grouped))
    return {p: n for p, n in out.items() if len(blocks[p]) == 1}


class _Room:
    """Free bytes of the buffers of some clusters, beside what is in use."""

    def __init__(self, b: Builder, clusters: tuple[int, ...], used: list[tuple[_At, int]]) -> None:
        self.gaps: list[list[int]] = []  # memory, start, stop
        for c in clusters:
            for level in Level:
                memory, start = memory_id(c, level), 0
                for address, size in sorted((a, n) for (m, a), n in used if m == memory):
                    self.gaps.append([memory, start, address])
                    start = -(-(address + size) // BLOCK) * BLOCK
                self.gaps.append([memory, start, capacity(b.arch, c, level) // BLOCK * BLOCK])

    def take(self, size: int) -> _At | None:
        """Room in the largest gap."""
        size = -(-size // BLOCK) * BLOCK
        gap = max(self.gaps, key=lambda g: g[2] - g[1])
        if gap[2] - gap[1] < size:
            return None
        gap[1] += size
        return gap[0], gap[1] - size


@dataclass(frozen=True)
class Sum:
    """A gradient's sum, or a block of it, on the chip.

    Attributes:
        param: the whole sum.
        size: of its allocation.
        at: where that is.
        w, c: input and output channels (first, count) that are there.
    """

    param: Param
    size: tuple[int, int, int, int]
    at: _At
    w: tuple[int, int]
    c: tuple[int, int]


def emit_update(
    b: Builder, held: list[tuple[_At, int]], total: Sum, update: Nest, grad: int
) -> bool:
    """The optimizer's instructions for a gradient whose sum is complete, tap by tap.

    Args:
        b: where instructions go.
        held: what else is in use: address and bytes, of the sum too.
        total: the sum, or a block of it.
        update: the optimizer's nest.
        grad: number of the gradient in DRAM, where it then is not.

    Returns:
        Whether there is room; else there are no instructions.
    """
    block = total.c[1]
    while (places := _places(b, held, total, update, grad, block)) is None:
        if block == 1:
            return False
        block = -(-block // 2)
    emitter = _Update(b, total, update, places, block)
    emitter.numbers()
    rows = [
        (part.at + k, part.row + k)
        for part in total.param.stores
        if part.tensor == grad
        for k in range(part.count)
    ]
    blocks = [(c, min(block, total.c[1] - c)) for c in range(0, total.c[1], block)]
    for turn, ((at, row), c) in enumerate(product(rows, blocks)):
        emitter.tap(turn, at, row, c)
    return True


_Places = dict[Value | Param, list[_At]]


def _places(
    b: Builder, held: list[tuple[_At, int]], total: Sum, update: Nest, grad: int, block: int
) -> _Places | None:
    """Where an update's values lie: all but the gradient."""
    room = _Room(b, (total.param.cluster, *total.param.reach), held)
    values = [v for v in update.values() if v.load is None or v.load.tensor != grad]
    wants: list[tuple[Value | Param, int, int]] = [
        (v, -(-total.w[1] * block * b.bits[v.format] // 8), _COPIES) for v in values
    ]
    wants += [(q, BLOCK, 1) for q in update.params()]
    out: _Places = {}
    for key, size, copies in wants:
        found = [room.take(size) for _ in range(copies)]
        out[key] = [at for at in found if at is not None]
        if len(out[key]) < copies:
            return None
    return out


_ONE = (0, 1)


@dataclass(frozen=True)
class _Update:
    b: Builder
    total: Sum
    update: Nest
    places: _Places
    block: int

    def number(self, q: Param) -> int:
        """The box of a single number."""
        memory, address = self.places[q][0]
        return self.b.tile(memory, q.format, address, (1, 1, 1, 1), _ONE, _ONE, _ONE, _ONE)

    def numbers(self) -> None:
        """Load the single numbers, such as the learning rate."""
        for q in self.update.params():
            for part in q.loads:
                far = self.b.dram(part.tensor, (0, 1, 1), _ONE, _ONE, _ONE)
                self.b.emit(Op.LOAD, UnitKind.LOAD, q.tag, dst=self.number(q), src0=far)

    def near(self, v: Value, turn: int, at: int, c: tuple[int, int]) -> int:
        """Some channels of a tap on the chip; ``at`` is the tap's row in the sum."""
        wide = (0, self.total.w[1])
        if v not in self.places:
            p, (memory, address) = self.total.param, self.total.at
            return self.b.tile(memory, p.format, address, self.total.size, _ONE, (at, 1), wide, c)
        memory, address = self.places[v][turn % _COPIES]
        size = (1, 1, wide[1], self.block)
        return self.b.tile(memory, v.format, address, size, _ONE, _ONE, wide, (0, c[1]))

    def tap(self, turn: int, at: int, row: int, c: tuple[int, int]) -> None:
        """Load, compute and store some channels of a tap; ``row`` is its row in DRAM."""
        b, box = self.b, (self.total.c[0] + c[0], c[1])

        def far(tensor: int) -> int:
            return b.dram(tensor, (0, 1, 1), (row, 1), self.total.w, box)

        for v in self.places:
            if isinstance(v, Value) and v.load is not None:
                tile = self.near(v, turn, at, c)
                b.emit(Op.LOAD, UnitKind.LOAD, self.update.tag, dst=tile, src0=far(v.load.tensor))
        for s in self.update.steps:
            operands = [self.near(v, turn, at, c) for v in s.ins]
            operands = [*operands, *map(self.number, s.params), NONE, NONE]
            (out,) = s.outs
            b.emit(
                s.op,
                s.unit,
                s.tag,
                dst=self.near(out, turn, at, c),
                src0=operands[0],
                src1=operands[1],
                src2=operands[2],
                attr=b.scalars(s.scalars) if s.scalars else 0,
                flags=s.flags,
            )
            if out.store is not None:
                tile = self.near(out, turn, at, c)
                b.emit(Op.STORE, UnitKind.STORE, s.tag, dst=far(out.store.tensor), src0=tile)
