"""How a nest is cut into tiles so that it fits the buffers: :func:`plan_nest`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import capacity
from ttsnn.accel_target.codegen.hazards import BLOCK
from ttsnn.accel_target.codegen.nest import Flow, Nest, Param, Step, Value, flow_of
from ttsnn.accel_target.isa import Level, Op, memory_id
from ttsnn.accel_target.program import format_bits
from ttsnn.errors import TargetError

__all__ = ["Place", "Plan", "plan_nest"]

_MIN_BLOCK = 8  # channels


@dataclass(frozen=True)
class Place:
    """An allocation: memory, sizes [frames, rows, width, channels], addresses of its copies."""

    memory: int
    size: tuple[int, int, int, int]
    addresses: tuple[int, ...]


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
    """

    frames: int
    strip: int
    block: int
    flow: Flow
    streams: dict[tuple[Step, Param], int] = field(default_factory=dict)
    places: dict[object, Place] = field(default_factory=dict)


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


def _channels(v: Value, block: int) -> int:
    return min(v.channels, block) if v.grouped else v.channels


def _allocate(
    nest: Nest,
    plan: Plan,
    arch: Architecture,
    bits: tuple[int, ...],
    streamed: set[Param],
    down: bool,
    spare: bool,
) -> _Space:
    """Fill ``plan.places`` and ``plan.streams``; ``lacking`` of the result says what failed."""
    space = _Space(arch, down)
    plan.places, plan.streams = {}, {}
    wanted: list[tuple[int, object, int, Level, int, tuple[int, int, int, int], int]] = []
    for p in nest.params():
        if p in streamed:
            continue
        size = (1, *p.shape)
        n = _bytes(size, bits[p.format])
        wanted.append((n, p, p.cluster, p.prefer, n, size, 1))
    for v in nest.values():
        rows = plan.flow.rows[v]
        if not v.grouped and spare:
            rows = min(v.height, rows + plan.flow.burst[v])
        size = (plan.frames, max(rows, 1), v.width, _channels(v, plan.block))
        n = _bytes(size, bits[v.format])
        copies = 2 if v.grouped and spare else 1
        wanted.append((n * copies, v, v.cluster, v.prefer, n, size, copies))
    for p, steps in uses(nest).items():
        if p not in streamed:
            continue
        for s, axis in steps:
            total = p.shape[1] if axis == "w" else p.shape[2]
            per = p.shape[0] * (p.shape[2] if axis == "w" else p.shape[1]) * bits[p.format] // 8
            grouped = s.group is not None
            room = capacity(arch, p.cluster, p.prefer) // (4 if len(streamed) < 3 else 8)
            block = plan.block if grouped else max(1, min(total, room // max(per, 1)))
            block = min(block, total)
            plan.streams[s, p] = block
            size = (
                (1, p.shape[0], block, p.shape[2])
                if axis == "w"
                else (1, p.shape[0], p.shape[1], block)
            )
            n = _bytes(size, bits[p.format])
            wanted.append((2 * n, (s, p), p.cluster, p.prefer, n, size, 2))
    for _, key, cluster, prefer, n, size, copies in sorted(wanted, key=lambda w: -w[0]):
        places = [space.take(cluster, prefer, n) for _ in range(copies)]
        if any(x is None for x in places) or len({m for m, _ in places}) > 1:  # type: ignore
            space.lacking = space.lacking or (cluster, prefer, n)
            return space
        plan.places[key] = Place(places[0][0], size, tuple(a for _, a in places))  # type: ignore
    return space


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
    bits = format_bits(arch)
    height = max(v.height for v in nest.values())
    time = any(s.time for s in nest.steps)
    frames = [nest.T] if time else [f for f in _halving(nest.T) if nest.T % f == 0]
    widest = max([v.channels for v in nest.values() if v.grouped], default=1)
    blocks = [b for b in _halving(widest) if b >= min(_MIN_BLOCK, widest)]
    weights = sorted(uses(nest), key=lambda p: -prod(p.shape) * bits[p.format])
    best: tuple[float, Plan, set[Param], bool] | None = None
    failed: tuple[int, Level, int] | None = None
    flows = {s: flow_of(nest, s) for s in _halving(height)}
    tiles = sorted(((f, s) for f in frames for s in flows), key=lambda t: -t[0] * t[1])
    for f, strip in tiles:
        count = nest.N * (nest.T // f) * len(flows[strip].strips)
        if best is not None and 32 * 4 * len(nest.steps) * count > best[0]:
            break
        for spare in (True, False):
            found = None
            for n in range(len(weights) + 1):
                streamed = set(weights[:n])
                for block in blocks:
                    plan = Plan(f, strip, block, flows[strip])
                    space = _allocate(nest, plan, arch, bits, streamed, down, spare)
                    if space.lacking is None:
                        found = plan, streamed
                        break
                    failed = space.lacking
                if found:
                    break
            if found:
                cost = _cost(nest, *found, count, bits)
                if best is None or cost < best[0]:
                    best = cost, found[0], found[1], spare
                break
    if best is None:
        raise _too_big(nest, arch, failed, bits)
    return best[1]


def _cost(nest: Nest, plan: Plan, streamed: set[Param], count: int, bits: tuple[int, ...]) -> float:
    """Bytes of weights and sums moved more than once, and of instructions."""
    total = 0.0
    instructions = 0.0
    for p, steps in uses(nest).items():
        if p in streamed:
            size = prod(p.shape) * bits[p.format] // 8
            for s, _ in steps:
                total += size * (count if not p.sums else 2 * (count - 1))
                axis = p.shape[1] if plan.streams[s, p] < p.shape[1] else p.shape[2]
                instructions += count * axis / plan.streams[s, p]
    for s in nest.steps:
        wide = max((v.channels for v in s.outs + s.ins if v.grouped), default=1)
        instructions += count * (-(-wide // plan.block) if s.group is not None else 1)
    return total + 32 * 2 * instructions


def _too_big(nest: Nest, arch: Architecture, failed, bits: tuple[int, ...]) -> TargetError:
    cluster, level, size = failed or (0, Level.INPUT, 0)
    name = ("weight_buffer", "input_buffer", "output_buffer")[level]
    c = arch.clusters[cluster]
    return TargetError(
        f"layer {nest.layer!r} does not fit the accelerator {arch.name!r}: even for one row of one "
        f"timestep, {size} bytes find no room in {name} of cluster {c.name!r} "
        f"({getattr(c, name)} bytes); use an architecture with larger buffers"
    )
