"""A nest: the part of a program that streams a layer through the chip, strip of rows by strip.

For every image and block of timesteps, strips of rows are loaded and everything that can be
computed from them is: a step processes all rows whose inputs are there, each exactly once. Values
that a later strip still needs (the halo of a 3-row kernel) stay in a ring of rows. Steps in a
*group* run block of channels by block of channels; values inside it exist for one block only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ttsnn.accel_target.codegen.builder import Geometry
from ttsnn.accel_target.isa import Format, Level, Op

__all__ = [
    "Flow",
    "Nest",
    "Param",
    "Part",
    "Ref",
    "Step",
    "Term",
    "Value",
    "flow_of",
    "needed_rows",
]


@dataclass(frozen=True)
class Ref:
    """Where a value lies in DRAM.

    Attributes:
        tensor: number of the tensor.
        step: its first timestep.
        repeat: the same frame for all timesteps.
    """

    tensor: int
    step: int = 0
    repeat: bool = False


@dataclass(eq=False)
class Value:
    """Image data on the chip: [timesteps of a block, rows of a strip, width, channels].

    Attributes:
        grouped: exists for one block of channels at a time.
        load: DRAM that it is read from, or None where a step produces it.
        store: DRAM that it is written to, or None.
        frames: first timestep of the nest's that it has, and how many; None: all.
        reach: other clusters whose buffers it may lie in.
        over: the value whose tile it takes over, which nothing reads any more.
    """

    name: str
    height: int
    width: int
    channels: int
    format: Format
    cluster: int = 0
    prefer: Level = Level.INPUT
    grouped: bool = False
    load: Ref | None = None
    store: Ref | None = None
    frames: tuple[int, int] | None = None
    reach: tuple[int, ...] = ()
    over: Value | None = None

    @property
    def tile(self) -> Value:
        """The value that has its tile."""
        return self if self.over is None else self.over.tile


@dataclass(frozen=True)
class Part:
    """Rows of a parameter's tile and where they are in DRAM."""

    tensor: int
    row: int
    count: int
    at: int
    add: bool = False


@dataclass(eq=False)
class Param:
    """A tile that stays for the whole nest: weights, coefficients, sums of gradients.

    Attributes:
        shape: rows, width, channels; weights are taps, input channels, output channels.
        loads: parts read before its first use.
        stores: parts written after its last.
        sums: it is accumulated over the whole nest.
        value: the grouped value that is the same tensor; the tile is that value's.
    """

    name: str
    shape: tuple[int, int, int]
    format: Format
    cluster: int = 0
    prefer: Level = Level.WEIGHT
    loads: tuple[Part, ...] = ()
    stores: tuple[Part, ...] = ()
    sums: bool = False
    tag: int = 0
    reach: tuple[int, ...] = ()
    value: Value | None = None


@dataclass(eq=False)
class Term:
    """One convolution of a step that adds up several."""

    x: Value
    weight: Param
    geometry: Geometry
    flags: int = 0


@dataclass(eq=False)
class Step:
    """One operation on every strip.

    Attributes:
        op: GEMM (``terms``), WGRAD (``x``, ``dy``, ``sum``), or an operation pixel by pixel or
            window by window.
        outs, ins: values; WGRAD has ins (x, dy).
        params: operands that are the same for all pixels, after ``ins``.
        sum: tile that WGRAD, RED or BN_SUMS adds to.
        geometry: of WGRAD and pools.
        group: number of the group that it belongs to, or None.
        transpose: rows run from the output to the input.
        time: it needs all timesteps at once.
        frames: timesteps that it works on, where these are not all; its nest then has all of
            them in one block.
    """

    op: Op
    unit: int
    tag: int
    outs: tuple[Value, ...] = ()
    ins: tuple[Value, ...] = ()
    params: tuple[Param, ...] = ()
    terms: tuple[Term, ...] = ()
    sum: Param | None = None
    sum_row: int = 0
    geometry: Geometry | None = None
    scalars: tuple[float, ...] = ()
    flags: int = 0
    group: int | None = None
    transpose: bool = False
    time: bool = False
    frames: tuple[int, int] | None = None


@dataclass
class Nest:
    """Steps in an order in which they may run.

    Attributes:
        layer: for messages.
        T: timesteps that it covers.
        N: images.
    """

    layer: str
    T: int
    N: int
    steps: list[Step] = field(default_factory=list)
    tag: int = 0

    def values(self) -> list[Value]:
        """All values, in order of appearance."""
        seen: dict[int, Value] = {}
        for s in self.steps:
            for v in (*s.ins, *(t.x for t in s.terms), *s.outs):
                seen.setdefault(id(v), v)
        return list(seen.values())

    def params(self) -> list[Param]:
        """All parameters with a tile of their own, in order of appearance."""
        seen: dict[int, Param] = {}
        for s in self.steps:
            given = [*s.params, *(t.weight for t in s.terms), *([s.sum] if s.sum else [])]
            for p in given:
                if p.value is None:
                    seen.setdefault(id(p), p)
        return list(seen.values())


# -- rows ----------------------------------------------------------------------------------------


def _extent(g: Geometry) -> tuple[int, int]:
    rows = [t[0] for t in g[2]]
    return min(rows), max(rows)


def ready(g: Geometry, have: int) -> int:
    """Output rows that can be computed from the first ``have`` input rows."""
    if have >= g[3]:
        return g[5]
    return max(0, min(g[5], (have - 1 - _extent(g)[1]) // g[0] + 1))


def first_needed(g: Geometry, done: int) -> int:
    """First input row that output rows from ``done`` on read."""
    return max(0, done * g[0] + _extent(g)[0])


def ready_back(g: Geometry, have: int) -> int:
    """Rows of the input's gradient that the first ``have`` rows of the output's determine."""
    if have >= g[5]:
        return g[3]
    return max(0, min(g[3], have * g[0] + _extent(g)[0]))


def first_needed_back(g: Geometry, done: int) -> int:
    """First row of the output's gradient that input rows from ``done`` on read."""
    return needed_rows(g, (done, done + 1), True)[0]


def needed_rows(g: Geometry, rows: tuple[int, int], transpose: bool) -> tuple[int, int]:
    """Rows of the operand that result rows [first, end) read, inside the image."""
    low, high = _extent(g)
    if not transpose:
        return max(0, rows[0] * g[0] + low), max(1, min(g[3], (rows[1] - 1) * g[0] + high + 1))
    first = max(0, -((high - rows[0]) // g[0]))
    last = min(g[5] - 1, (rows[1] - 1 - low) // g[0])
    if last < first:  # none: the one before them, which is still there
        first = last = max(0, last)
    return first, last + 1


Item = Value | Step | int
"""Something that processes rows: a load, a step, or a group by its number."""


@dataclass
class Flow:
    """Which rows each item processes in each strip, and how many rows values must hold.

    Attributes:
        strips: for each strip, (item, first row, end row) in order; the rows are those of the
            item's output, for WGRAD of dy.
        rows: value → rows that it holds at most at the same time.
        burst: value → rows that it gains at most in a strip.
    """

    strips: list[list[tuple[Item, int, int]]]
    rows: dict[Value, int]
    burst: dict[Value, int]


def items_of(nest: Nest) -> list[Item]:
    """Loads, steps and groups in order of execution; loads stand before their first reader."""
    out: list[Item] = []
    seen: set[int] = set()
    groups: set[int] = set()
    for s in nest.steps:
        members = [s] if s.group is None else [m for m in nest.steps if m.group == s.group]
        for m in members:
            for v in (*m.ins, *(t.x for t in m.terms)):
                if v.load is not None and not v.grouped and id(v) not in seen:
                    seen.add(id(v))
                    out.append(v)
        if s.group is None:
            out.append(s)
        elif s.group not in groups:
            groups.add(s.group)
            out.append(s.group)
    return out


def _reads(s: Step) -> Iterator[tuple[Value, str, Geometry | None]]:
    for t in s.terms:
        yield t.x, "back" if s.transpose else "conv", t.geometry
    for i, v in enumerate(s.ins):
        if s.op == Op.WGRAD:
            yield v, "conv" if i == 0 else "point", s.geometry
        elif s.geometry is not None and i == 0:
            yield v, "back" if s.transpose else "conv", s.geometry
        elif s.geometry is not None:  # whose maximum it is: whole windows of the result's rows
            yield v, "windows", s.geometry
        else:
            yield v, "point", None


def _end(s: Step) -> int:
    """Rows that a step processes altogether."""
    if s.op == Op.WGRAD:
        return s.ins[1].height
    return s.outs[0].height if s.outs else s.ins[0].height


def flow_of(nest: Nest, strip: int) -> Flow:
    """Rows by strips.

    Args:
        nest: the nest.
        strip: rows of the tallest value that a strip loads.
    """
    items = items_of(nest)
    base = max(v.height for v in nest.values())
    members = {g: [s for s in nest.steps if s.group == g] for g in items if isinstance(g, int)}
    readers: dict[int, list[tuple[int, str, Geometry | None]]] = {}
    have: dict[int, int] = {id(v): 0 for v in nest.values()}
    done = [0] * len(items)
    for k, item in enumerate(items):
        for s in [] if isinstance(item, Value) else members.get(item, [item]):  # type: ignore
            for v, kind, g in _reads(s):
                readers.setdefault(id(v), []).append((k, kind, g))
    end = []
    for item in items:
        if isinstance(item, Value):
            end.append(item.height)
        else:
            end.append(_end(members[item][0] if isinstance(item, int) else item))
    makers: dict[int, set[int]] = {}
    made: dict[tuple[int, int], int] = {}
    for k, item in enumerate(items):
        if isinstance(item, Value):
            makers.setdefault(id(item), set()).add(k)
            continue
        for s in members[item] if isinstance(item, int) else [item]:
            for v in s.outs:
                makers.setdefault(id(v), set()).add(k)
    rows = dict.fromkeys(nest.values(), 0)
    burst = dict.fromkeys(nest.values(), 0)
    strips: list[list[tuple[Item, int, int]]] = []
    k = 0
    while any(d < e for d, e in zip(done, end)):
        here: list[tuple[Item, int, int]] = []
        share = min(base, (k + 1) * strip)
        for i, item in enumerate(items):
            if isinstance(item, Value):
                to = -(-share * item.height // base)
                produced: Sequence[Value] = (item,)
            else:
                steps = members[item] if isinstance(item, int) else [item]
                limits = [_limit(s, have, item, share, base) for s in steps]
                to = min(min(limits), end[i])
                produced = [v for s in steps for v in s.outs]
            if to <= done[i]:
                continue
            here.append((item, done[i], to))
            for v in produced:
                burst[v] = max(burst[v], to - done[i])
                made[id(v), i] = to
                have[id(v)] = min(made.get((id(v), m), 0) for m in makers[id(v)])
                if v.grouped:
                    rows[v] = max(rows[v], to - done[i])
                else:
                    low = min(
                        (_low(kind, g, done[r]) for r, kind, g in readers.get(id(v), ())),
                        default=done[i],
                    )
                    rows[v] = max(rows[v], to - min(low, done[i]))
            if isinstance(item, int):  # loads of a group's own values
                for s in members[item]:
                    for v in s.ins + tuple(t.x for t in s.terms):
                        if v.grouped:
                            rows[v] = max(rows[v], to - done[i])
                            burst[v] = max(burst[v], to - done[i])
            done[i] = to
        strips.append(here)
        k += 1
        assert k <= 4 * base + 8, f"{nest.layer}: rows never become ready"
    return Flow([s for s in strips if s], rows, burst)


def _low(kind: str, g: Geometry | None, done: int) -> int:
    if g is None or kind in ("point", "windows"):
        return done
    return first_needed(g, done) if kind == "conv" else first_needed_back(g, done)


def _limit(s: Step, have: dict[int, int], item: Item, share: int, base: int) -> int:
    limit = _end(s)
    sources = True
    for v, kind, g in _reads(s):
        if v.grouped:
            continue
        sources = False
        n = have[id(v)]
        if g is not None and kind == "conv":
            n = ready(g, n)
        elif g is not None and kind == "back":
            n = ready_back(g, n)
        elif g is not None and kind == "windows" and n < g[3]:  # the last with what is below it
            n = ready_back(g, min(ready(g, n), g[5] - 1))
        limit = min(limit, n)
    if sources and isinstance(item, int):
        limit = min(limit, -(-share * _end(s) // base))
    return limit
