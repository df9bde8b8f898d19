"""What each instruction costs: events and cycles, from its operands' sizes alone.

GEMM and WGRAD are matrix products with M rows (pixels; WGRAD: rows of the weight), N columns and
depth K on an array of R × C PEs:

``os``  ⌈M/R⌉ ⌈N/C⌉ (K + R + C - 2) cycles; reads ⌈N/C⌉ M K and ⌈M/R⌉ K N operands, writes M N
``ws``  ⌈K/R⌉ ⌈N/C⌉ (M + 2R + C - 2) cycles; reads ⌈N/C⌉ M K and K N, adds M N sums ⌈K/R⌉ times

which are SCALE-Sim's, plus 1. TURNED, M and N change places, and so do the operands. Every operand
read from a buffer is written to a scratchpad of the array and read there once. An instruction lasts
at least as long as its bytes take at each buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.events import EVENTS, event_index
from ttsnn.accel_target.isa import DRAM, NONE, Flag, Op, Pool, Reduce, Vec
from ttsnn.accel_target.lockstep import OPERAND_HOPS, RESULT_HOPS, SIDE, ring_width
from ttsnn.accel_target.program import Program, format_bits

__all__ = ["Costs", "costs", "products"]

_READ = ("weight_read", "input_read", "output_read")
_WRITE = ("weight_write", "input_write", "output_write")
_OPERANDS = ("dst", "dst1", "src0", "src1", "src2")


@dataclass
class Costs:
    """By instruction.

    Attributes:
        busy: cycles in which its unit works on it.
        latency: further cycles until others see its result.
        events: [instructions, events], but for ``mac8`` … ``gated``, which depend on the values.
        macs: products of the dense loops, both operands inside the image.
        narrow: products are of operands of at most 8 bits.
        binary: the first operand is spikes.
        depth: output channels for which each operand of src0 is used.
    """

    busy: np.ndarray
    latency: np.ndarray
    events: np.ndarray
    macs: np.ndarray
    narrow: np.ndarray
    binary: np.ndarray
    depth: np.ndarray


class _Columns:
    """Fields of the operands of some instructions, as arrays."""

    def __init__(self, program: Program, rows: np.ndarray, bits: np.ndarray) -> None:
        table = program.instructions[rows]
        self.rows, self.table = rows, table
        self.flags = table["flags"].astype(np.int64)
        self.bits = bits
        self.d = {}
        for name in _OPERANDS:
            index = table[name].astype(np.int64)
            there = index != NONE
            record = program.descriptors[np.where(there, index, 0)]
            self.d[name] = record, there

    def __getitem__(self, key: str) -> np.ndarray:
        name, _, field = key.partition(".")
        record, there = self.d[name]
        return np.where(there, record[field].astype(np.int64), 0)

    def elements(self, name: str) -> np.ndarray:
        return self[f"{name}.f"] * self[f"{name}.h"] * self[f"{name}.w"] * self[f"{name}.c"]

    def width(self, name: str) -> np.ndarray:
        """Bits of an element."""
        return self.bits[np.minimum(self[f"{name}.format"], len(self.bits) - 1)]

    def bytes(self, name: str) -> np.ndarray:
        return -(-self.elements(name) * self.width(name) // 8)


def products(program: Program) -> np.ndarray:
    """Pixel-and-tap pairs inside the image of each GEMM and WGRAD, times frames; else 0."""
    out = np.zeros(len(program), np.int64)
    table = program.instructions
    mine = np.flatnonzero((table["op"] == Op.GEMM) | (table["op"] == Op.WGRAD))
    boxes = program.descriptors
    known: dict[tuple, int] = {}
    for i in mine.tolist():
        row = table[i]
        back = bool(row["flags"] & Flag.TRANSPOSE) and row["op"] == Op.GEMM
        box = boxes[row["src1"] if row["op"] == Op.WGRAD else row["dst"]]
        key = (int(row["attr"]), int(box["h0"]), int(box["h"]), back)
        if key not in known:
            known[key] = _pairs(program, *key)
        out[i] = known[key] * int(box["f"])
    return out


def _pairs(program: Program, attr: int, first: int, count: int, back: bool) -> int:
    g = program.geometry[attr]
    sh, sw = int(g["stride_h"]), int(g["stride_w"])
    taps = program.taps[g["tap0"] : g["tap0"] + g["taps"]]
    rows_out, columns = np.arange(int(g["out_h"])), np.arange(int(g["out_w"])) * sw
    total = 0
    for dy, dx in taps.tolist():
        r = rows_out * sh + dy
        inside = (r >= 0) & (r < int(g["in_h"]))
        where = r if back else rows_out
        inside &= (where >= first) & (where < first + count)
        across = (columns + dx >= 0) & (columns + dx < int(g["in_w"]))
        total += int(inside.sum()) * int(across.sum())
    return total


def costs(program: Program, arch: Architecture, density: np.ndarray | None = None) -> Costs:
    """Costs of all instructions.

    Args:
        program: generated for ``arch``.
        arch: the machine.
        density: [instructions], share of the operands of GEMM and WGRAD that are not zero; used
            for cycles where a cluster skips zeros. None: 1.
    """
    n = len(program)
    bits = np.array(format_bits(arch), np.int64)
    c = Costs(
        busy=np.ones(n, np.int64),
        latency=np.zeros(n, np.int64),
        events=np.zeros((n, len(EVENTS))),
        macs=np.zeros(n, np.int64),
        narrow=np.zeros(n, bool),
        binary=np.zeros(n, bool),
        depth=np.ones(n, np.int64),
    )
    ops = program.instructions["op"]
    c.events[:, event_index("fetch")] = isa_bytes(program)
    for op in np.unique(ops).tolist():
        rows = np.flatnonzero(ops == op)
        col = _Columns(program, rows, bits)
        if op in (Op.GEMM, Op.WGRAD):
            _arrays(program, arch, c, col, op, density)
        elif op in (Op.LOAD, Op.STORE):
            _dma(program, arch, c, col, op)
        elif op == Op.XFER:
            _xfer(program, arch, c, col)
        elif op not in (Op.END, Op.SYNC):
            _pointwise(program, arch, c, col, op)
    return c


def isa_bytes(program: Program) -> np.ndarray:
    """Bytes fetched for each instruction: itself, and operands that are named the first time."""
    out = np.full(len(program), program.instructions.itemsize, np.int64)
    named = np.stack([program.instructions[name] for name in _OPERANDS], axis=1).ravel()
    used, first = np.unique(named, return_index=True)
    np.add.at(out, first[used != NONE] // len(_OPERANDS), program.descriptors.itemsize)
    return out


def _count(c: Costs, rows: np.ndarray, event: str, value: np.ndarray) -> None:
    c.events[rows, event_index(event)] += value


def _buffers(
    arch: Architecture, c: Costs, col: _Columns, name: str, amount: np.ndarray, write: bool
) -> np.ndarray:
    """Count bytes at the buffer that an operand lies in; cycles that they take."""
    memory = col[f"{name}.memory"]
    names = _WRITE if write else _READ
    cycles = np.zeros(len(memory), np.int64)
    for m in np.unique(memory[amount > 0]).tolist():
        if m == DRAM:
            continue
        mine = memory == m
        _count(c, col.rows[mine], names[(m - 1) % 3], amount[mine])
        cluster = arch.clusters[min((m - 1) // 3, len(arch.clusters) - 1)]
        rate = cluster.banks * cluster.bank_width
        cycles[mine] = -(-amount[mine] // rate)
    return cycles


def _ceil(a: np.ndarray, b: int) -> np.ndarray:
    return -(-a // b)


def _arrays(
    program: Program,
    arch: Architecture,
    c: Costs,
    col: _Columns,
    op: int,
    density: np.ndarray | None,
) -> None:
    g = program.geometry[col.table["attr"]]
    taps = g["taps"].astype(np.int64)
    back = (col.flags & Flag.TRANSPOSE) != 0
    strides = np.maximum(g["stride_h"].astype(np.int64) * g["stride_w"], 1)
    if op == Op.GEMM:
        m = col["dst.f"] * col["dst.h"] * col["dst.w"]
        meet = np.minimum(_ceil2(taps, strides), _meeting(program, col.table["attr"]))
        n, k = col["dst.c"], np.where(back, meet, taps) * col["src0.c"]
        second = "src1"
    else:
        m, n = taps * col["src0.c"], col["src1.c"]
        k = col["src1.f"] * col["src1.h"] * col["src1.w"]
        second = "src1"
    pairs = products(program)[col.rows]
    c.macs[col.rows] = pairs * col["src0.c"] * (col["dst.c"] if op == Op.GEMM else col["src1.c"])
    c.depth[col.rows] = col["dst.c"] if op == Op.GEMM else col["src1.c"]
    c.narrow[col.rows] = np.maximum(col.width("src0"), col.width(second)) <= 8
    c.binary[col.rows] = (col.flags & Flag.BINARY) != 0
    share = np.ones(len(m)) if density is None else density[col.rows]
    acc = (col.flags & Flag.ACC) != 0
    turned = (col.flags & Flag.TURNED) != 0
    down, across = np.where(turned, n, m), np.where(turned, m, n)  # the array
    units = col.table["unit"]
    together = (col.flags & Flag.LOCKSTEP) != 0
    for u, joined in sorted(set(zip(units.tolist(), together.tolist()))):
        unit = program.units[u]
        cluster = arch.clusters[unit.cluster]
        mine = (units == u) & (together == joined)
        side = SIDE if joined else 1
        r, cols = cluster.rows * side, cluster.cols * side
        # arrays in lockstep are one, whose operands take a cycle more from array to array
        fill = r + cols - 2 + (SIDE if joined else 0)
        depth = np.maximum(1, np.ceil(k * share)).astype(np.int64) if cluster.skip_zeros else k
        if cluster.dataflow == "os":
            cycles = _ceil(down, r) * _ceil(across, cols) * (depth + fill)
            first, last = _ceil(across, cols) * down * k, _ceil(down, r) * k * across
            writes, rereads = m * n, np.where(acc, m * n, 0)
        else:
            cycles = _ceil(k, r) * _ceil(across, cols) * (down + r + fill)
            first, last = _ceil(across, cols) * down * k, k * across
            folds = _ceil(k, r)
            writes, rereads = folds * m * n, (folds - 1 + acc) * m * n
        reads0, reads1 = np.where(turned, last, first), np.where(turned, first, last)
        amount = [
            ("src0", reads0 * col.width("src0") // 8, False),
            (second, reads1 * col.width(second) // 8, False),
            ("dst", writes * col.width("dst") // 8, True),
            ("dst", rereads * col.width("dst") // 8, False),
        ]
        bound = cycles
        moved = np.zeros(len(m), np.int64)
        for name, number, write in amount:
            number = np.where(mine, number, 0)
            if not joined:
                bound = np.maximum(bound, _through(arch, c, col, name, number, unit.cluster))
            bound = np.maximum(bound, _buffers(arch, c, col, name, number, write))
            moved += 0 if write else number
        if joined:
            read = sum(number for _, number, write in amount[:2])
            rest = sum(number for _, number, write in amount[2:])
            hops = np.ceil(OPERAND_HOPS * read + RESULT_HOPS * rest).astype(np.int64)
            _count(c, col.rows, "link_sent", np.where(mine, hops, 0))
            _count(c, col.rows, "link_received", np.where(mine, hops, 0))
            bound = np.maximum(bound, _ceil(read + rest, 2 * ring_width(arch)))
        _count(c, col.rows, "spad_bytes", 2 * moved)
        c.busy[col.rows[mine]] = bound[mine]


def _meeting(program: Program, attrs: np.ndarray) -> np.ndarray:
    """Taps that meet in one pixel of the input at most, where they lie in a row; else all."""
    out = np.zeros(len(attrs), np.int64)
    for attr in np.unique(attrs).tolist():
        g = program.geometry[attr]
        taps = program.taps[g["tap0"] : g["tap0"] + g["taps"]]
        most = len(taps)
        if (taps["dy"] == taps["dy"][0]).all():
            at, phase = np.divmod(np.sort(taps["dx"].astype(np.int64)), int(g["stride_w"]))
            lines = [at[phase == p] for p in np.unique(phase)]
            ends = [np.searchsorted(a, a + int(g["out_w"])) for a in lines]
            most = max(int((e - np.arange(len(e))).max()) for e in ends)
        out[attrs == attr] = most
    return out


def _through(
    arch: Architecture, c: Costs, col: _Columns, name: str, amount: np.ndarray, cluster: int
) -> np.ndarray:
    """Count bytes of operands that come from another cluster's buffer; cycles on the link."""
    home = (col[f"{name}.memory"] - 1) // 3
    cycles = np.zeros(len(home), np.int64)
    names = [k.name for k in arch.clusters]
    for link in arch.links:
        if names.index(link.destination) != cluster:
            continue
        mine = (home == names.index(link.source)) & (amount > 0)
        _count(c, col.rows[mine], "link_sent", amount[mine])
        _count(c, col.rows[mine], "link_received", amount[mine])
        cycles[mine] = _ceil(amount[mine], link.width)
    return cycles


def _ceil2(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -(-a // b)


def _dma(program: Program, arch: Architecture, c: Costs, col: _Columns, op: int) -> None:
    far, near = ("src0", "dst") if op == Op.LOAD else ("dst", "src0")
    amount = col.bytes(far)
    whole_c = col[f"{far}.c"] == col[f"{far}.channels"]
    whole_w = whole_c & (col[f"{far}.w"] == col[f"{far}.width"])
    whole_h = whole_w & (col[f"{far}.h"] == col[f"{far}.rows"]) & (col[f"{far}.step"] == 1)
    f, h, w = col[f"{far}.f"], col[f"{far}.h"], col[f"{far}.w"]
    runs = np.where(whole_h, 1, np.where(whole_w, f, np.where(whole_c, f * h, f * h * w)))
    runs = np.maximum(runs, 1)
    burst = arch.dram.burst
    moved = runs * _ceil(_ceil2(amount, runs), burst) * burst
    _count(c, col.rows, "dram_read" if op == Op.LOAD else "dram_write", amount)
    cycles = np.ceil(moved / arch.dram.bytes_per_cycle).astype(np.int64)
    own = _buffers(arch, c, col, near, col.bytes(near), op == Op.LOAD)
    if op == Op.LOAD:
        acc = np.where((col.flags & Flag.ACC) != 0, col.elements("dst"), 0)
        _count(c, col.rows, "vec_add", acc)
        own = np.maximum(own, _buffers(arch, c, col, near, acc * col.width(near) // 8, False))
    c.busy[col.rows] = np.maximum(np.maximum(cycles, own), 1)
    c.latency[col.rows] = arch.dram.latency


def _xfer(program: Program, arch: Architecture, c: Costs, col: _Columns) -> None:
    width = {}
    for link in arch.links:
        ends = [[k.name for k in arch.clusters].index(e) for e in (link.source, link.destination)]
        width[ends[0], ends[1]] = link.width
    sent, received = col.bytes("src0"), col.bytes("dst")
    _count(c, col.rows, "link_sent", sent)
    _count(c, col.rows, "link_received", received)
    _count(c, col.rows, "vec_add", np.where((col.flags & Flag.ACC) != 0, col.elements("dst"), 0))
    pairs = zip(((col["src0.memory"] - 1) // 3).tolist(), ((col["dst.memory"] - 1) // 3).tolist())
    rate = np.array([width.get(e, 1) for e in pairs], np.int64)
    own = _buffers(arch, c, col, "src0", sent, False)
    other = _buffers(arch, c, col, "dst", received, True)
    c.busy[col.rows] = np.maximum(np.maximum(_ceil2(sent, rate), own), np.maximum(other, 1))


_KINDS: dict[int, dict[int, str]] = {
    Op.VEC: {
        Vec.ADD: "vec_add",
        Vec.SUB: "vec_add",
        Vec.RSUB: "vec_add",
        Vec.MUL: "vec_mul",
        Vec.MAX: "vec_cmp",
        Vec.MIN: "vec_cmp",
        Vec.EQUAL: "vec_cmp",
        Vec.ABS: "vec_cmp",
        Vec.DIV: "vec_special",
        Vec.RDIV: "vec_special",
        Vec.EXP: "vec_special",
        Vec.LOG: "vec_special",
        Vec.SQRT: "vec_special",
        Vec.POW: "vec_special",
    },
    Op.RED: {Reduce.SUM: "vec_add", Reduce.SUM_SQUARES: "vec_add", Reduce.MAX: "vec_cmp"},
    Op.POOL: {Pool.MEAN: "vec_add", Pool.SUM: "vec_add", Pool.MAX: "vec_cmp"},
    Op.POOLB: {Pool.MEAN: "vec_mul", Pool.MAX: "vec_cmp"},
}
_FIXED: dict[int, dict[str, int]] = {
    Op.LIF: {"lif": 1},
    Op.LIFB: {"lif_grad": 1},
    Op.BN_STAT: {"vec_mul": 2, "vec_add": 1, "vec_special": 1},
    Op.BN_RUN: {"vec_mul": 3, "vec_add": 1},
    Op.BN_APPLY: {"vec_mul": 2, "vec_add": 2},
    Op.BN_SUMS: {"vec_mul": 2, "vec_add": 3},
    Op.BN_GRAD: {"vec_mul": 4, "vec_add": 3},
}


def _pointwise(program: Program, arch: Architecture, c: Costs, col: _Columns, op: int) -> None:
    """Everything that a unit does element by element."""
    count = np.maximum(col.elements("dst"), col.elements("src0"))
    work = count
    kind = col.flags & 0xFF
    if op == Op.POOL:
        taps = np.where(kind == Pool.FLAT, 1, program.geometry[col.table["attr"]]["taps"])
        work = col.elements("dst") * taps
    for k, event in _KINDS.get(op, {}).items():
        _count(c, col.rows, event, np.where(kind == k, work, 0))
    if op == Op.RED:
        _count(c, col.rows, "vec_mul", np.where(kind == Reduce.SUM_SQUARES, work, 0))
    if op == Op.POOL:
        _count(c, col.rows, "vec_mul", np.where(kind == Pool.MEAN, col.elements("dst"), 0))
    for event, times in _FIXED.get(op, {}).items():
        _count(c, col.rows, event, times * count)
    lanes = np.ones(len(count), np.int64)
    for u in np.unique(col.table["unit"]).tolist():
        unit = program.units[u]
        if unit.kind in ("vector", "lif", "gradient", "optimizer"):
            lanes[col.table["unit"] == u] = getattr(arch, unit.kind).lanes
    cycles = _ceil2(work, lanes)
    for name in _OPERANDS:
        write = name in ("dst", "dst1")
        cycles = np.maximum(cycles, _buffers(arch, c, col, name, col.bytes(name), write))
        if name == "dst":
            again = np.where((col.flags & Flag.ACC) != 0, col.bytes(name), 0)
            if op not in (Op.LIF,):
                cycles = np.maximum(cycles, _buffers(arch, c, col, name, again, False))
    c.busy[col.rows] = np.maximum(cycles, 1)
