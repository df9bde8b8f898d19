"""Whether a program can be executed at all: fields inside their ranges, operands in reach."""

from __future__ import annotations

import numpy as np

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.isa import DRAM, NONE, Flag, Op
from ttsnn.accel_target.lockstep import can_lockstep
from ttsnn.accel_target.program import Program, format_bits, units_of
from ttsnn.errors import TargetError

__all__ = ["check_program"]

_OPERANDS = ("dst", "dst1", "src0", "src1", "src2")
_SCALARS = (Op.VEC, Op.LIF, Op.LIFB, Op.BN_STAT, Op.BN_RUN, Op.BN_GRAD)
_NEEDS = {
    Op.LOAD: ("dst", "src0"),
    Op.STORE: ("dst", "src0"),
    Op.XFER: ("dst", "src0"),
    Op.GEMM: ("dst", "src0", "src1"),
    Op.WGRAD: ("dst", "src0", "src1"),
    Op.VEC: ("dst", "src0"),
    Op.RED: ("dst", "src0"),
    Op.LIF: ("dst", "src0"),
    Op.LIFB: ("dst", "src0", "src1", "src2"),
    Op.BN_STAT: ("dst", "src0"),
    Op.BN_RUN: ("dst", "src0", "src1"),
    Op.BN_APPLY: ("dst", "src0", "src1"),
    Op.BN_SUMS: ("dst", "src0", "src1", "src2"),
    Op.BN_GRAD: ("dst", "src0", "src1", "src2"),
    Op.POOL: ("dst", "src0"),
    Op.POOLB: ("dst", "src0"),
}
_KIND = {
    Op.LOAD: {"load"},
    Op.STORE: {"store"},
    Op.XFER: {"link"},
    Op.GEMM: {"compute"},
    Op.WGRAD: {"compute"},
}
_OTHERS = {"vector", "lif", "gradient", "optimizer"}


def check_program(program: Program, arch: Architecture) -> None:
    """Refuse what cannot be executed on an architecture.

    Raises:
        TargetError: another architecture's program, or the first instruction or row that is
            impossible, and why.
    """
    program.check_target(arch)
    if program.units != units_of(arch):
        raise TargetError(f"the program's units are not those of architecture {arch.name!r}")
    _check_descriptors(program, arch)
    _check_geometry(program)
    _check_instructions(program)
    _check_reach(program, arch)


def _check_descriptors(program: Program, arch: Architecture) -> None:
    d = program.descriptors
    bits = np.array(format_bits(arch), np.int64)
    memories = 1 + 3 * len(arch.clusters)
    _refuse(d["memory"] >= memories, "operand", "names a memory that is not there")
    _refuse(d["format"] >= len(bits), "operand", "has an unknown number format")
    far = d["memory"] == DRAM
    _refuse(far & (d["address"] >= len(program.tensors)), "operand", "names no tensor of the DRAM")
    shapes = np.array([t.shape for t in program.tensors], np.int64).reshape(-1, 4)
    index = np.where(far, d["address"], 0)
    for axis, (name, box) in enumerate(
        zip(("frames", "rows", "width", "channels"), ("f", "h", "w", "c"))
    ):
        size = d[name].astype(np.int64)
        first, count = d[f"{box}0"].astype(np.int64), d[box].astype(np.int64)
        _refuse(count < 1, "operand", "is empty")
        _refuse(size < 1, "operand", "has an allocation without elements")
        if len(shapes):
            wrong = far & (shapes[index, axis] != size)
            _refuse(wrong, "operand", "has not the sizes of its tensor")
        step = np.where(far & (box == "f"), d["step"], 1)
        last = first + (count - 1) * step
        ring = ~far & (box == "h")
        _refuse(~ring & (last >= size), "operand", f"ends outside its allocation ({name})")
        _refuse(ring & (count > size), "operand", "has more rows than its ring")
    _check_capacity(d, arch, bits, far)


def _check_capacity(d: np.ndarray, arch: Architecture, bits: np.ndarray, far: np.ndarray) -> None:
    sizes = [d[k].astype(float) for k in ("frames", "rows", "width", "channels")]
    row = np.ceil(sizes[0] * sizes[2] * sizes[3] * bits[d["format"]] / 8)
    stop = d["address"] + row * sizes[1]
    room = [0]
    for c in arch.clusters:
        room += [c.weight_buffer, c.input_buffer, c.output_buffer]
    too_far = ~far & (stop > np.array(room)[d["memory"]])
    _refuse(too_far, "operand", "ends outside its buffer")


def _check_geometry(program: Program) -> None:
    g = program.geometry
    for name in ("stride_h", "stride_w", "taps", "in_h", "in_w", "out_h", "out_w"):
        _refuse(g[name] < 1, "geometry", f"{name} must be at least 1")
        _refuse(g[name] > 1 << 20, "geometry", f"{name} is too large")
    _refuse(
        (g["tap0"] < 0) | (g["tap0"] + g["taps"] > len(program.taps)),
        "geometry",
        "names taps that are not there",
    )
    if not np.isfinite(program.scalars).all():
        raise TargetError("the program is impossible: a scalar is no number")


def _check_instructions(program: Program) -> None:
    t = program.instructions
    _refuse(t["op"] > max(Op), "instruction", "has an unknown operation")
    _refuse(t["unit"] >= len(program.units), "instruction", "names a unit that is not there")
    units = len(program.units)
    if units < 16:
        _refuse(
            (t["pop"] >> units) | (t["push"] >> units),
            "instruction",
            "names a unit that is not there in its tokens",
        )
    own = np.left_shift(1, t["unit"].astype(np.int64))
    _refuse((t["pop"] & own) | (t["push"] & own), "instruction", "waits for its own unit")
    _refuse(t["tag"] >= max(len(program.tags), 1), "instruction", "has a tag that is not there")
    for name in _OPERANDS:
        index = t[name]
        _refuse(
            (index != NONE) & (index >= len(program.descriptors)),
            "instruction",
            f"has an operand {name} that is not there",
        )
    kinds = np.array([u.kind for u in program.units])[t["unit"]] if len(t) else np.array([])
    for op in np.unique(t["op"]).tolist():
        mine = t["op"] == op
        for name in _NEEDS.get(Op(op), ()):
            _refuse(mine & (t[name] == NONE), "instruction", f"lacks its operand {name}")
        if op in (Op.END, Op.SYNC):
            continue
        allowed = _KIND.get(Op(op), _OTHERS)
        _refuse(
            mine & ~np.isin(kinds, sorted(allowed)),
            "instruction",
            "is on a unit that cannot execute it",
        )
        table = program.geometry if op in (Op.GEMM, Op.WGRAD, Op.POOL, Op.POOLB) else None
        if table is not None:
            _refuse(mine & (t["attr"] >= len(table)), "instruction", "has no geometry")
        elif op in _SCALARS:
            needs = mine & (t["src1"] == NONE) if op == Op.VEC else mine
            used = needs & (t["attr"] >= max(len(program.scalars), 1))
            _refuse(used, "instruction", "has no scalars")


def _check_reach(program: Program, arch: Architecture) -> None:
    """A cluster has its own buffers; DRAM is for LOAD and STORE alone; links lead somewhere."""
    t, d = program.instructions, program.descriptors
    if not len(t) or not len(d):
        return
    cluster = np.array([u.cluster for u in program.units])[t["unit"]]
    memory = {
        n: np.where(t[n] == NONE, -1, d["memory"][np.where(t[n] == NONE, 0, t[n])].astype(int))
        for n in _OPERANDS
    }
    load, store = t["op"] == Op.LOAD, t["op"] == Op.STORE
    _refuse(
        load & ((memory["src0"] != DRAM) | (memory["dst"] == DRAM)),
        "instruction",
        "loads from something that is no DRAM, or to it",
    )
    _refuse(
        store & ((memory["dst"] != DRAM) | (memory["src0"] == DRAM)),
        "instruction",
        "stores to something that is no DRAM, or from it",
    )
    names = [c.name for c in arch.clusters]
    joined = {(names.index(x.source), names.index(x.destination)) for x in arch.links}
    others = ~load & ~store
    computes = (t["op"] == Op.GEMM) | (t["op"] == Op.WGRAD)
    together = computes & ((t["flags"] & Flag.LOCKSTEP) != 0)
    if together.any():
        apart = computes & (~together | (cluster != 0))
        _refuse(together & (not can_lockstep(arch)), "instruction", "needs four equal clusters")
        _refuse(apart, "instruction", "is for one cluster, while others are in lockstep")
    for n in _OPERANDS:
        _refuse(others & (memory[n] == DRAM), "instruction", f"works on DRAM ({n})")
        home = (memory[n] - 1) // 3
        away = computes & ~together & (memory[n] > 0) & (home != cluster)
        through = (n == "src0") | ((n == "src1") & (t["op"] == Op.WGRAD))
        linked = np.zeros(len(t), bool)
        for a, b in joined:
            linked |= (home == a) & (cluster == b)
        bad = away & ~(linked & through)
        _refuse(
            bad, "instruction", f"reaches for the buffer of a cluster without a link to it ({n})"
        )
    for i in np.flatnonzero(t["op"] == Op.XFER).tolist():
        a, b = (memory["src0"][i] - 1) // 3, (memory["dst"][i] - 1) // 3
        if (a, b) not in joined or a != cluster[i]:
            raise TargetError(
                f"the program is impossible: instruction {i} uses a link that is not there"
            )


def _refuse(bad: np.ndarray, what: str, why: str) -> None:
    found = np.flatnonzero(bad)
    if len(found):
        raise TargetError(
            f"the program is impossible: {what} {int(found[0])} {why}; compile the network again"
        )
