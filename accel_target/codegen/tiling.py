"""How a nest is cut into tiles so that it fits the buffers: :func:`plan_nest`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import capacity
from ttsnn.accel_target.codegen.hazards import BLOCK
from ttsnn.accel_target.codegen.nest import Flow, Nest, Param, Step, flow_of
from ttsnn.accel_target.isa import Level, Op, memory_id
from ttsnn.accel_target.program import format_bits
from ttsnn.errors import TargetError

__all__ = ["Place", "Plan", "plan_nest"]

_MIN_BLOCK = 8  # channels


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
        streams: (step, parameter) → channels of a block, for parameters that do not stay.
        places: value, parameter or (step, parameter) → allocation.
        traffic: bytes that it moves between DRAM and chip.
    """

    frames: int
    strip: int
    block: int
    flow: Flow
    streams: dict[tuple[Step, Param], int] = field(default_factory=dict)
    places: dict[object, Place] = field(default_factory=dict)
    traffic: float = 0.0


def uses(nest: Nest) -> dict[Param, list[tuple[Step, str]]]:
    """Weights and their gradients: steps that use them, and the axis along which these block."""
    out: dict[Param, list[tuple[Step, str]]] = {}
    for s in nest.steps:
        for t in s.terms:
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


class _Space:
    """Free bytes of the buffers, from the bottom or from the top."""

    def __init__(self, arch: Architecture, down: bool) -> None:
        self.arch, self.down = arch, down
        self.used: dict[tuple[int, Level], int] = {}
        self.lacking: tuple[int, Level, int] | None = None

    def take(self, cluster: int, prefer: Level, size: int) -> tuple[int, int] | None:
        """(memory, address), in the preferred buffer or in another one of the cluster."""
        order = [prefer, *(lv for lv in (Level.OUTPUT, Level.INPUT, Level.WEIGHT) if lv != prefer)]
        for level in order:
            used = self.used.get((cluster, level), 0)
            room = capacity(self.arch, cluster, level) // BLOCK * BLOCK
            if used + size <= room:
                self.used[cluster, level] = used + size
                address = room - used - size if self.down else used
                return memory_id(cluster, level), address
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


class _Planner:
    """What stays the same in all plans of a nest."""

    def __init__(self, nest: Nest, arch: Architecture, down: bool) -> None:
        self.nest, self.arch, self.down = nest, arch, down
        self.bits = format_bits(arch)
        self.values, self.params, self.uses = nest.values(), nest.params(), uses(nest)
        self.weights = sorted(self.uses, key=lambda p: -self.param_bytes(p))
        self.fixed = [
            _Want(p, p.cluster, p.prefer, (1, *p.shape), _bytes((1, *p.shape), self.bits[p.format]))
            for p in self.params
        ]
        self.room = [c.buffer_bytes for c in arch.clusters]
        self.failed: tuple[int, Level, int] | None = None

    def param_bytes(self, p: Param) -> int:
        """Bytes of a parameter in DRAM."""
        return prod(p.shape) * self.bits[p.format] // 8

    def value_wants(self, frames: int, flow: Flow, block: int, spare: bool) -> list[_Want]:
        """Values; with ``spare`` the next strip or block can be loaded beside the current one."""
        out = []
        for v in self.values:
            rows = flow.rows[v]
            if not v.grouped and spare:
                rows = min(v.height, rows + flow.burst[v])
            channels = min(v.channels, block) if v.grouped else v.channels
            count = min(frames, v.frames[1]) if v.frames else frames
            size = (count, max(rows, 1), v.width, channels)
            n = _bytes(size, self.bits[v.format])
            out.append(_Want(v, v.cluster, v.prefer, size, n, 2 if v.grouped and spare else 1))
        return out

    def stream_wants(self, streamed: list[Param], block: int) -> list[_Want]:
        """Two blocks of each parameter that does not stay."""
        out = []
        for p in streamed:
            bits = self.bits[p.format]
            for s, axis in self.uses[p]:
                total = p.shape[1] if axis == "w" else p.shape[2]
                per = p.shape[0] * (p.shape[2] if axis == "w" else p.shape[1]) * bits // 8
                room = capacity(self.arch, p.cluster, p.prefer) // (4 if len(streamed) < 3 else 8)
                count = block if s.group is not None else max(1, room // max(per, 1))
                count = min(count, total)
                size = (
                    (1, p.shape[0], count, p.shape[2])
                    if axis == "w"
                    else (1, p.shape[0], p.shape[1], count)
                )
                out.append(_Want((s, p), p.cluster, p.prefer, size, _bytes(size, bits), 2))
        return out

    def try_plan(
        self, frames: int, strip: int, block: int, flow: Flow, streams: int, spare: bool
    ) -> Plan | None:
        """A plan in which the ``streams`` largest weights do not stay, if it fits."""
        streamed = self.weights[:streams]
        wants = [w for w in self.fixed if w.key not in streamed]
        wants += self.value_wants(frames, flow, block, spare)
        wants += self.stream_wants(streamed, block)
        need = [0] * len(self.room)
        for w in wants:
            need[w.cluster] += w.bytes * w.copies
        for k, n in enumerate(need):
            if n > self.room[k]:
                largest = max((w for w in wants if w.cluster == k), key=lambda w: w.bytes)
                self.failed = k, largest.prefer, largest.bytes
                return None
        plan = Plan(frames, strip, block, flow)
        space = _Space(self.arch, self.down)
        for w in sorted(wants, key=lambda w: -w.bytes):
            places = [space.take(w.cluster, w.prefer, w.bytes) for _ in range(w.copies)]
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
            again = count if not p.sums else 2 * count - 1
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


def plan_nest(nest: Nest, arch: Architecture, down: bool) -> Plan:
    """The tiles with the least DRAM traffic.

    Args:
        nest: the nest.
        arch: the machine.
        down: allocate from the buffers' ends, so that the next nest's loads need not wait.

    Raises:
        TargetError: not even one row of one timestep fits; names layer and buffer.
    """
    planner = _Planner(nest, arch, down)
    height = max(v.height for v in planner.values)
    time = any(s.time for s in nest.steps)
    frames = [nest.T] if time else [f for f in _halving(nest.T) if nest.T % f == 0]
    widest = max([v.channels for v in planner.values if v.grouped], default=1)
    blocks = [b for b in _halving(widest) if b >= min(_MIN_BLOCK, widest)]
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
        plan.traffic = planner.traffic(plan, count)
        if best is None or plan.traffic < best.traffic:
            best = plan
        if not plan.streams:
            break  # smaller tiles move nothing less
    if best is None:
        raise _too_big(nest, arch, planner.failed)
    return best


def _first_fit(
    planner: _Planner, frames: int, strip: int, flow: Flow, blocks: list[int]
) -> Plan | None:
    """The fewest streamed weights, then room for two tiles, then the largest block."""
    for streams in range(len(planner.weights) + 1):
        for spare in (True, False):
            for block in blocks:
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
