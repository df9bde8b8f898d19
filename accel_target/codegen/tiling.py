"""How a nest is cut into tiles so that it fits the buffers: :func:`plan_nest`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import capacity
from ttsnn.accel_target.codegen.hazards import BLOCK
from ttsnn.accel_target.codegen.nest import Flow, Nest, Param, Step, flow_of
from ttsnn.accel_target.isa import Level, Op, memory_id
from ttsnn.accel_target.program import format_bits
from ttsnn.errors import TargetError

__all__ = ["Place", "Plan", "Space", "plan_nest", "uses"]

_SHARE = 6  # a block of a streamed weight has at most this part of the buffers in reach
_COLUMNS = 8  # channels of a block are a multiple of it
_DEPTH = 8  # strips that keep a chain of clusters busy
_IDLE = 0.1  # share of the traffic that clusters waiting for each other are worth
_SRAM = 0.036  # what a byte of SRAM costs, in bytes of DRAM: the most in any technology (sata16)


@dataclass(frozen=True)
class Place:
    """An allocation: sizes [frames, rows, width, channels], (memory, address) of its copies."""

    size: tuple[int, int, int, int]
    at: tuple[tuple[int, int], ...]


@dataclass
class Plan:
    """Tiles of a nest.

    Attributes:
        frames: timesteps of a block.
        strip: rows of the tallest value that a strip loads.
        block: channels of a block in groups.
        flow: rows.
        spare: there is room for the next strip or block beside the current one.
        streams: (step, parameter) → channels of a block, for parameters that do not stay.
        places: value, parameter or (step, parameter) → allocation.
        traffic: bytes that it moves between DRAM and chip, and what sums cost in buffers.
        again: how many times the streamed parameters are moved.
    """

    frames: int
    strip: int
    block: int
    flow: Flow
    spare: bool
    streams: dict[tuple[Step, Param], int] = field(default_factory=dict)
    places: dict[object, Place] = field(default_factory=dict)
    traffic: float = 0.0
    again: int = 1


def uses(nest: Nest) -> dict[Param, list[tuple[Step, str]]]:
    """Weights and their gradients: steps that use them, and the axis along which these block."""
    out: dict[Param, list[tuple[Step, str]]] = {}
    for s in nest.steps:
        for t in s.terms:
            if t.weight.value is None:
                out.setdefault(t.weight, []).append((s, _axis(s)))
        if s.op == Op.WGRAD and s.sum is not None:
            out.setdefault(s.sum, []).append((s, "w" if s.ins[0].grouped else "c"))
    return out


def _axis(s: Step) -> str:
    inner = any(t.x.grouped for t in s.terms)
    return "w" if inner != s.transpose else "c"


def _bytes(size: tuple[int, int, int, int], bits: int) -> int:
    """Bytes of an allocation, rows packed; a multiple of the blocks that hazards track."""
    row = -(-size[0] * size[2] * size[3] * bits // 8)
    return -(-row * size[1] // BLOCK) * BLOCK


class Space:
    """Free bytes of the buffers, from the bottom or from the top."""

    def __init__(self, arch: Architecture, down: bool) -> None:
        self.arch, self.down = arch, down
        self.used: dict[tuple[int, Level], int] = {}
        self.lacking: tuple[int, Level, int] | None = None

    def free(self, cluster: int) -> int:
        """Bytes that are left in a cluster."""
        return self.arch.clusters[cluster].buffer_bytes - sum(
            n for (c, _), n in self.used.items() if c == cluster
        )

    def take(
        self, cluster: int, prefer: Level, size: int, reach: tuple[int, ...] = ()
    ) -> tuple[int, int] | None:
        """(memory, address): in the preferred buffer, another of the cluster, another in reach."""
        order = [prefer, *(lv for lv in (Level.OUTPUT, Level.INPUT, Level.WEIGHT) if lv != prefer)]
        for c in (cluster, *sorted(reach, key=lambda c: -self.free(c))):
            for level in order:
                used = self.used.get((c, level), 0)
                room = capacity(self.arch, c, level) // BLOCK * BLOCK
                if used + size <= room:
                    self.used[c, level] = used + size
                    address = room - used - size if self.down else used
                    return memory_id(c, level), address
        self.lacking = (cluster, prefer, size)
        return None


@dataclass(frozen=True)
class _Want:
    """An allocation that a plan needs: ``copies`` times ``size`` elements of ``bytes`` in all."""

    key: object
    cluster: int
    prefer: Level
    size: tuple[int, int, int, int]
    bytes: int
    copies: int = 1
    reach: tuple[int, ...] = ()


class _Planner:
    """What stays the same in all plans of a nest."""

    def __init__(self, nest: Nest, arch: Architecture, down: bool) -> None:
        self.nest, self.arch, self.down = nest, arch, down
        self.bits = format_bits(arch)
        self.values, self.params, self.uses = nest.values(), nest.params(), uses(nest)
        # a sum that does not stay is moved twice as often as a weight
        self.weights = sorted(self.uses, key=lambda p: (p.sums, -self.param_bytes(p)))
        self.fixed = [
            _Want(
                p,
                p.cluster,
                p.prefer,
                (1, *p.shape),
                _bytes((1, *p.shape), self.bits[p.format]),
                1,
                p.reach,
            )
            for p in self.params
        ]
        self.room = [c.buffer_bytes for c in arch.clusters]
        self.failed: tuple[int, Level, int] | None = None
        self._needs: dict[tuple, tuple[list[_Want], list[int]]] = {}

    def param_bytes(self, p: Param) -> int:
        """Bytes of a parameter in DRAM."""
        return prod(p.shape) * self.bits[p.format] // 8

    def value_wants(self, frames: int, flow: Flow, block: int, spare: bool) -> list[_Want]:
        """Values; with ``spare`` the next strip or block can be loaded beside the current one."""
        out = []
        for v in self.values:
            if v.over is not None:
                continue
            rows = flow.rows[v]
            if not v.grouped and spare:
                rows = min(v.height, rows + flow.burst[v])
            channels = min(v.channels, block) if v.grouped else v.channels
            count = min(frames, v.frames[1]) if v.frames else frames
            size = (count, max(rows, 1), v.width, channels)
            n = _bytes(size, self.bits[v.format])
            copies = 2 if v.grouped and spare else 1
            out.append(_Want(v, v.cluster, v.prefer, size, n, copies, v.reach))
        return out

    def stream_wants(self, streamed: list[Param], block: int) -> list[_Want]:
        """Two blocks of each parameter that does not stay."""
        out = []
        for p in streamed:
            bits = self.bits[p.format]
            reach = sum(self.room[c] for c in (p.cluster, *p.reach))
            room = reach // (_SHARE if len(streamed) < 3 else 2 * _SHARE)
            for s, axis in self.uses[p]:
                total = p.shape[1] if axis == "w" else p.shape[2]
                per = p.shape[0] * (p.shape[2] if axis == "w" else p.shape[1]) * bits // 8
                count = block if s.group is not None else max(1, room // max(per, 1))
                if _COLUMNS < count < total:  # whole columns of the arrays
                    count -= count % _COLUMNS
                count = min(count, total)
                size = (
                    (1, p.shape[0], count, p.shape[2])
                    if axis == "w"
                    else (1, p.shape[0], p.shape[1], count)
                )
                out.append(_Want((s, p), p.cluster, p.prefer, size, _bytes(size, bits), 2))
        return out

    def spilled(self, block: int) -> float:
        """Bytes of sums that blocks of input channels write to buffers and read again."""
        total = 0.0
        for s in self.nest.steps:
            for t in s.terms:
                if t.x.grouped and block < t.x.channels:
                    y = s.outs[0]
                    count = self.nest.T * self.nest.N * y.height * y.width * y.channels
                    again = -(-t.x.channels // block) - 1
                    total += 2 * again * count * self.bits[y.format] / 8
        return total

    def need(self, key: tuple, wants: Callable[[], list[_Want]]) -> tuple[list[_Want], list[int]]:
        """Allocations of a part of a plan, and their bytes on each cluster; remembered."""
        if key not in self._needs:
            found = wants()
            total = [0] * (len(self.room) + 1)
            for w in found:
                if not w.reach:
                    total[w.cluster] += w.bytes * w.copies
                total[-1] += w.bytes * w.copies
            self._needs[key] = found, total
        return self._needs[key]

    def try_plan(
        self, frames: int, strip: int, block: int, flow: Flow, streams: int, spare: bool
    ) -> Plan | None:
        """A plan in which the ``streams`` largest weights do not stay, if it fits."""
        streamed = self.weights[:streams]
        parts = [
            self.need((streams,), lambda: [w for w in self.fixed if w.key not in streamed]),
            self.need(
                (frames, strip, block, spare),
                lambda: self.value_wants(frames, flow, block, spare),
            ),
            self.need((streams, block), lambda: self.stream_wants(streamed, block)),
        ]
        for k, room in enumerate((*self.room, sum(self.room))):
            if sum(total[k] for _, total in parts) > room:
                everywhere = k == len(self.room)
                largest = max(
                    (w for wants, _ in parts for w in wants if everywhere or w.cluster == k),
                    key=lambda w: w.bytes,
                )
                self.failed = largest.cluster, largest.prefer, largest.bytes
                return None
        wants = [w for found, _ in parts for w in found]
        plan = Plan(frames, strip, block, flow, spare)
        space = Space(self.arch, self.down)
        for w in sorted(wants, key=lambda w: (len(w.reach), -w.bytes)):
            places = [space.take(w.cluster, w.prefer, w.bytes, w.reach) for _ in range(w.copies)]
            found = [p for p in places if p is not None]
            if len(found) < w.copies:
                self.failed = space.lacking
                return None
            plan.places[w.key] = Place(w.size, tuple(found))
            if isinstance(w.key, tuple):
                s, p = w.key
                axis = next(a for step, a in self.uses[p] if step is s)
                plan.streams[w.key] = w.size[2] if axis == "w" else w.size[3]
        return plan

    def traffic(self, plan: Plan, count: int) -> float:
        """Bytes between DRAM and chip: values, parameters, and instructions (a guess)."""
        total, instructions = 0.0, 0.0
        nest = self.nest
        for v in self.values:
            moves = (v.load is not None) + (v.store is not None)
            steps = v.frames[1] if v.frames else nest.T
            size = steps * nest.N * v.height * v.width * v.channels
            total += moves * size * self.bits[v.format] / 8
        streamed = {p for _, p in plan.streams}
        for p in self.params:
            if p not in streamed:
                parts = (*p.loads, *p.stores)
                total += sum(t.count for t in parts) / p.shape[0] * self.param_bytes(p)
        for (s, p), block in plan.streams.items():
            assert isinstance(s, Step)
            again = count if not p.sums else 2 * count - (not p.loads)
            total += self.param_bytes(p) * again
            axis = next(a for step, a in self.uses[p] if step is s)
            instructions += 2 * count * (p.shape[1] if axis == "w" else p.shape[2]) / block
        for s in nest.steps:
            wide = max((v.channels for v in s.outs + s.ins if v.grouped), default=1)
            instructions += count * (-(-wide // plan.block) if s.group is not None else 1)
        return total + 2 * 32 * instructions


def _halving(n: int) -> list[int]:
    out = [n]
    while out[-1] > 1:
        out.append(-(-out[-1] // 2))
    return out


def signature(nest: Nest) -> tuple:
    """Equal for nests that have the same plans."""
    names: dict[int, int] = {}

    def name(x: object) -> int:
        return names.setdefault(id(x), len(names))

    values = tuple(
        (
            name(v),
            v.height,
            v.width,
            v.channels,
            v.format,
            v.cluster,
            v.prefer,
            v.grouped,
            v.load is None,
            v.store is None,
            v.frames,
            v.reach,
            name(v.tile),
        )
        for v in nest.values()
    )
    params = tuple(
        (
            name(p),
            p.shape,
            p.format,
            p.cluster,
            p.prefer,
            p.reach,
            p.sums,
            tuple((t.row, t.count) for t in p.loads),
            tuple((t.row, t.count) for t in p.stores),
        )
        for p in nest.params()
    )
    steps = tuple(
        (
            s.op,
            s.group,
            s.geometry,
            s.transpose,
            s.time,
            s.frames,
            tuple(map(name, (*s.outs, *s.ins, *s.params))),
            name(s.sum) if s.sum else -1,
            tuple((name(t.x), name(t.weight.value or t.weight), t.geometry) for t in s.terms),
        )
        for s in nest.steps
    )
    return nest.T, nest.N, values, params, steps


_Choice = tuple[int, int, int, int, bool, float]
_known: dict[tuple, _Choice | tuple[int, Level, int] | None] = {}
_KNOWN_AT_MOST = 20_000


def plan_nest(nest: Nest, arch: Architecture, down: bool) -> Plan:
    """The tiles with the least DRAM traffic; those of an equal nest are remembered.

    Args:
        nest: the nest.
        arch: the machine.
        down: allocate from the buffers' ends, so that the next nest's loads need not wait.

    Raises:
        TargetError: not even one row of one timestep fits; names layer and buffer.
    """
    key = arch, signature(nest)
    found = _known.get(key)
    if found is not None and len(found) == 6:
        frames, strip, block, streams, spare, traffic = found
        flow = flow_of(nest, strip)
        plan = _Planner(nest, arch, down).try_plan(frames, strip, block, flow, streams, spare)
        if plan is not None:
            plan.traffic = traffic
            plan.again = nest.N * (nest.T // frames) * len(flow.strips)
            return plan
    if found is not None and len(found) == 3:
        raise _too_big(nest, arch, found)
    if len(_known) >= _KNOWN_AT_MOST:
        _known.clear()
    planner = _Planner(nest, arch, down)
    best = _search(nest, planner)
    if best is None:
        _known[key] = planner.failed
        raise _too_big(nest, arch, planner.failed)
    streamed = {p for _, p in best.streams}
    _known[key] = (best.frames, best.strip, best.block, len(streamed), best.spare, best.traffic)
    return best


def _search(nest: Nest, planner: _Planner) -> Plan | None:
    """The plan with the least DRAM traffic."""
    height = max(v.height for v in planner.values)
    time = any(s.time for s in nest.steps)
    frames = [nest.T] if time else [f for f in _halving(nest.T) if nest.T % f == 0]
    widest = max([v.channels for v in planner.values if v.grouped], default=1)
    # whole columns of the arrays; fewer only where nothing else fits
    wide = dict.fromkeys(min(widest, -(-b // _COLUMNS) * _COLUMNS) for b in _halving(widest))
    best = _best_tile(nest, planner, frames, height, list(wide))
    if best is None:
        best = _best_tile(nest, planner, frames, height, [b for b in (4, 2, 1) if b < widest])
    return best


def _best_tile(
    nest: Nest, planner: _Planner, frames: list[int], height: int, blocks: list[int]
) -> Plan | None:
    """The plan with the least DRAM traffic among all sizes of tiles."""
    units = {s.unit for s in nest.steps if s.op in (Op.GEMM, Op.WGRAD)}
    alone = len(units) < 2
    best: Plan | None = None
    flows: dict[int, Flow] = {}
    tiles = [(f, s) for f in frames for s in _halving(height)]
    for f, strip in sorted(tiles, key=lambda t: -t[0] * t[1]):
        if strip not in flows:
            flows[strip] = flow_of(nest, strip)
        flow = flows[strip]
        count = nest.N * (nest.T // f) * len(flow.strips)
        plan = _first_fit(planner, f, strip, flow, blocks)
        if plan is None:
            continue
        plan.traffic, plan.again = planner.traffic(plan, count), count
        if not alone:  # clusters work at the same time only where there are strips enough
            idle = max(0.0, 1.0 - count / _DEPTH) + (not plan.spare)
            plan.traffic *= 1.0 + _IDLE * idle
        spilled = planner.spilled(plan.block)
        plan.traffic += _SRAM * spilled
        if best is None or plan.traffic < best.traffic:
            best = plan
        if not plan.streams and not spilled and (alone or (count >= _DEPTH and plan.spare)):
            break  # smaller tiles move nothing less
    return best


def _first_fit(
    planner: _Planner, frames: int, strip: int, flow: Flow, blocks: list[int]
) -> Plan | None:
    """The fewest streamed weights, then room for two tiles, then the largest block.

    Where blocks add up sums, the largest block comes before room for two tiles.
    """
    if not blocks:
        return None
    order = [(spare, block) for spare in (True, False) for block in blocks]
    if planner.spilled(1):
        order.sort(key=lambda o: -o[1])
    for streams in range(len(planner.weights) + 1):
        fits = {
            spare
            for spare in (True, False)
            if planner.try_plan(frames, strip, blocks[-1], flow, streams, spare) is not None
        }
        for spare, block in order if fits else ():
            if spare not in fits:  # nor does a larger block fit
                continue
            plan = planner.try_plan(frames, strip, block, flow, streams, spare)
            if plan is not None:
                return plan
    return None


def _too_big(nest: Nest, arch: Architecture, failed: tuple[int, Level, int] | None) -> TargetError:
    cluster, level, size = failed or (0, Level.INPUT, 0)
    name = ("weight_buffer", "input_buffer", "output_buffer")[level]
    c = arch.clusters[cluster]
    return TargetError(
        f"layer {nest.layer!r} does not fit the accelerator {arch.name!r}: even for one row of one "
        f"timestep, {size} bytes find no room in {name} of cluster {c.name!r} "
        f"({getattr(c, name)} bytes); use an architecture with larger buffers"
    )
