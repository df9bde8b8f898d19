"""The code generator: Relax program → instructions."""

from __future__ import annotations

import tvm

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.choose import choose
from ttsnn.accel_target.codegen.emit import emit_nest
from ttsnn.accel_target.codegen.fuse import Group
from ttsnn.accel_target.codegen.graph import Box, Graph, Small
from ttsnn.accel_target.codegen.hazards import BLOCK, assign_tokens
from ttsnn.accel_target.codegen.lower import _UNITS, Lowering
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.codegen.orient import orient
from ttsnn.accel_target.codegen.tiling import Space
from ttsnn.accel_target.codegen.updates import Updates
from ttsnn.accel_target.isa import NONE, Level, Op, UnitKind
from ttsnn.accel_target.program import Program
from ttsnn.errors import TargetError

__all__ = ["compile_program", "generate"]


def compile_program(
    mod: tvm.IRModule, arch: Architecture, options: Options | None = None
) -> Program:
    """Instructions of a program (:mod:`ttsnn.program`) or training step.

    Args:
        mod: static sizes; for inference after the target's passes.
        arch: the machine.
        options: what the code generator may do; default everything.

    Raises:
        TargetError: an operator that the accelerator does not have, or a layer that does not fit.
    """
    options = options or Options()
    chosen = choose(mod, arch, options)
    return generate(chosen.graph, chosen.groups, arch, options)


def generate(graph: Graph, groups: list[Group], arch: Architecture, options: Options) -> Program:
    """Instructions of a graph's groups."""
    b = Builder(arch)
    lowering = Lowering(graph, groups, b, options)
    updates = Updates(groups if options.fusion and options.updates else [])
    updated: set[int] = set()
    down = False
    for k, g in enumerate(groups):
        if k in updated:
            continue
        if isinstance(g.nodes[0], Small):
            for n in g.nodes:
                assert isinstance(n, Small)
                _emit_small(n, b, lowering, down)
        else:
            then = {lowering.number(t): (u, lowering.nest(u, groups[u])) for t, u in updates.of(k)}
            done = emit_nest(
                lowering.nest(k, g), b, down, {t: nest for t, (_, nest) in then.items()}
            )
            updated |= {then[t][0] for t in done}
        down = not down
    program = b.program({"options": options.to_json(), "T": graph.T, "N": graph.N})
    if options.orient:
        program = orient(program, arch)
    return assign_tokens(program, b.bits)


def _emit_small(node: Small, b: Builder, lowering: Lowering, down: bool) -> None:
    """Load, one instruction, store."""
    tag = b.tag(node.tag)
    space = Space(b.arch, down)
    others = tuple(range(1, len(b.arch.clusters)))

    def tile(boxes: tuple[Box, ...]) -> tuple[int, list[tuple[Box, int, int]]]:
        rows = [box.rows or (0, box.tensor.shape[1]) for box in boxes]
        t = boxes[0].tensor
        frames = boxes[0].frames or (0, t.shape[0], 1)
        size = (frames[1], sum(c for _, c in rows), *t.shape[2:])
        fmt = t.format
        n = -(-size[0] * size[2] * size[3] * b.bits[fmt] // 8) * size[1]
        n = -(-n // BLOCK) * BLOCK
        place = space.take(0, Level.WEIGHT, n, others)
        if place is None:
            raise TargetError(
                f"layer {node.tag.layer!r} does not fit {b.arch.name!r}: {n} bytes of "
                f"{t.name!r} find no room in weight_buffer; use an architecture with larger buffers"
            )
        memory, address = place

        def box_of(first: int, count: int) -> int:
            return b.tile(
                memory, fmt, address, size, (0, size[0]), (first, count), (0, size[2]), (0, size[3])
            )

        at, moves = 0, []
        for box, (first, count) in zip(boxes, rows):
            far = b.dram(
                lowering.number(box.tensor), frames, (first, count), (0, size[2]), (0, size[3])
            )
            moves.append((box, far, box_of(at, count)))
            at += count
        return box_of(0, size[1]), moves

    operands = []
    for boxes in node.srcs:
        whole, moves = tile(boxes)
        for _, far, near in moves:
            b.emit(Op.LOAD, UnitKind.LOAD, tag, dst=near, src0=far)
        operands.append(whole)
    operands += [NONE] * (3 - len(operands))
    whole, moves = tile((node.dst,))
    b.emit(
        node.op,
        _UNITS[node.unit],
        tag,
        dst=whole,
        src0=operands[0],
        src1=operands[1],
        src2=operands[2],
        attr=b.scalars(node.scalars) if node.scalars else 0,
        flags=node.flags,
    )
    for _, far, near in moves:
        b.emit(Op.STORE, UnitKind.STORE, tag, dst=far, src0=near)
