"""Rules for kernels that are no layer: elementwise, transposes, reductions, pools, and the rest.

A rule is ``rule(func, target) -> Schedule | None``; None means "not mine".
"""

from __future__ import annotations

from math import prod

import tvm
import tvm_ffi
from tvm import tirx
from tvm.s_tir.schedule import LoopRV, SBlockRV, Schedule, ScheduleError
from tvm.tirx import PrimFunc

from ttsnn.passes.cpu.isa import isa_of

__all__ = ["elementwise_rule", "fallback_rule", "reduction_rule"]

PARALLEL_FROM = 16384
"""Elements from which starting the threads costs less than it saves."""


def elementwise_rule(func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Elementwise functions, casts, transposes, concatenations, slices, padding, broadcasts.

    Every block computes each element from others at known places, without a loop inside: blocks
    whose result is not returned are inlined, the outer loops of the others run in parallel,
    their innermost is vectorised.
    """
    sch = _schedule(func)
    if sch is None:
        return None
    blocks = _blocks(sch)
    if not blocks or not all(_is_pointwise(sch, b) for b in blocks):
        return None
    _inline(sch)
    for block in _blocks(sch):
        _spread(sch, block, target)
    return sch


def reduction_rule(func: PrimFunc, target: tvm.target.Target) -> Schedule | None:
    """Sums, means, extrema and pools, with elementwise functions before and after.

    The outer loops over the result run in parallel. Where the innermost axis of the result is
    an axis of the operand's innermost dimension too (channels, when space or time is reduced),
    it is vectorised inside the reduction.
    """
    sch = _schedule(func)
    if sch is None:
        return None
    blocks = _blocks(sch)
    reductions = [b for b in blocks if _reduces(sch, b)]
    if not reductions or not all(_is_pointwise(sch, b) or _reduces(sch, b) for b in blocks):
        return None
    _inline(sch)
    for block in _blocks(sch):
        if _reduces(sch, block):
            _reduce(sch, block, target)
        else:
            _spread(sch, block, target)
    return sch


def fallback_rule(func: PrimFunc, _target: tvm.target.Target) -> Schedule:
    """Anything: the outermost loop of each block runs in parallel where that is certainly right."""
    sch = _schedule(func)
    if sch is None:
        return Schedule(func, error_render_level="none")
    for block in _blocks(sch):
        loops = sch.get_loops(block)
        if loops and sch.get(loops[0]).kind == tirx.ForKind.SERIAL:
            try:
                sch.parallel(loops[0])
            except ScheduleError:
                continue
    return sch


def _schedule(func: PrimFunc) -> Schedule | None:
    """A schedule of the function; None where it is not made of blocks."""
    sch = Schedule(func, error_render_level="none")
    try:
        root = sch.get_sblock("root")
    except (ScheduleError, ValueError, tvm.error.InternalError, IndexError, RuntimeError):
        return None
    return sch if sch.get_child_blocks(root) else None


def _blocks(sch: Schedule) -> list[SBlockRV]:
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def _iter_types(sch: Schedule, block: SBlockRV) -> list[int]:
    return [int(v.iter_type) for v in sch.get(block).iter_vars]


def _is_pointwise(sch: Schedule, block: SBlockRV) -> bool:
    data_parallel = int(tirx.IterVar.DataPar)
    node = sch.get(block)
    return node.init is None and all(t == data_parallel for t in _iter_types(sch, block))


def _reduces(sch: Schedule, block: SBlockRV) -> bool:
    kinds = _iter_types(sch, block)
    return sch.get(block).init is not None and int(tirx.IterVar.CommReduce) in kinds


def _inline(sch: Schedule) -> None:
    """Inline pointwise blocks into what reads them, where TVM can."""
    results = {sch.get(b).name_hint for b in sch.get_output_blocks(sch.get_sblock("root"))}
    for block in _blocks(sch):
        node = sch.get(block)
        if node.name_hint not in results and _is_pointwise(sch, block):
            try:
                sch.compute_inline(block)
            except ScheduleError:
                continue


def _is_big(extents: list[int | None]) -> bool:
    known = [e for e in extents if e is not None]
    return len(known) < len(extents) or prod(known) >= PARALLEL_FROM


def _extent(sch: Schedule, loop: LoopRV) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if isinstance(extent, tirx.IntImm) else None


def _spread(sch: Schedule, block: SBlockRV, target: tvm.target.Target) -> None:
    loops = sch.get_loops(block)
    if not loops:
        return
    extents = [_extent(sch, loop) for loop in loops]
    big = _is_big(extents)
    straight = not _has_inner_loop(sch, block)
    if len(loops) > 1:
        outer = sch.fuse(*loops[:-1])
        if straight:
            _vectorise(sch, loops[-1], extents[-1], block, target)
    elif straight and extents[0] is not None and extents[0] % _lanes(sch, block, target) == 0:
        outer, inner = sch.split(loops[0], [None, _lanes(sch, block, target)])
        sch.vectorize(inner)
    else:
        outer = loops[0]
    if big:
        sch.parallel(outer)


def _has_inner_loop(sch: Schedule, block: SBlockRV) -> bool:
    found: list = []
    tvm_ffi.structural_walk(sch.get(block).body, (tirx.For, found.append))
    return bool(found)


def _lanes(sch: Schedule, block: SBlockRV, target: tvm.target.Target) -> int:
    writes = sch.get(block).writes
    dtype = str(writes[0].source.dtype) if writes else "float32"
    return isa_of(target).lanes("float64" if dtype in ("float64", "int64") else "float32")


def _vectorise(
    sch: Schedule, loop: LoopRV, extent: int | None, block: SBlockRV, target: tvm.target.Target
) -> None:
    """Whole vectors where they divide the loop; what is left over is LLVM's to vectorise."""
    lanes = _lanes(sch, block, target)
    while lanes > 1:
        if extent is not None and extent % lanes == 0:
            _, inner = sch.split(loop, [None, lanes])
            sch.vectorize(inner)
            return
        lanes //= 2


def _reduce(sch: Schedule, block: SBlockRV, target: tvm.target.Target) -> None:
    loops = sch.get_loops(block)
    kinds = _iter_types(sch, block)
    if len(loops) != len(kinds):
        return
    spatial = [lp for lp, k in zip(loops, kinds) if k == int(tirx.IterVar.DataPar)]
    reduced = [lp for lp, k in zip(loops, kinds) if k == int(tirx.IterVar.CommReduce)]
    extents = [_extent(sch, lp) for lp in loops]
    big = _is_big(extents)
    inner = []
    if spatial and _innermost_is_shared(sch, block, kinds):
        last = spatial.pop()
        lanes, extent = _lanes(sch, block, target), _extent(sch, last)
        while lanes > 1 and (extent is None or extent % lanes):
            lanes //= 2
        if lanes > 1:
            outer, vector = sch.split(last, [None, lanes])
            spatial.append(outer)
            inner = [vector]
        else:
            spatial.append(last)
    sch.reorder(*spatial, *reduced, *inner)
    if inner:
        # before the initialisation is split off, so that it is vectorised as well
        sch.vectorize(inner[0])
    if spatial:
        fused = sch.fuse(*spatial)
        if big:
            sch.parallel(fused)
    sch.decompose_reduction(block, reduced[0])


def _innermost_is_shared(sch: Schedule, block: SBlockRV, kinds: list[int]) -> bool:
    """Whether operand and result have the same innermost axis."""
    node = sch.get(block)
    data = [v.var for v, k in zip(node.iter_vars, kinds) if k == int(tirx.IterVar.DataPar)]
    if not data or not node.writes:
        return False
    last = data[-1]

    def ends_with(region) -> bool:
        return bool(region.region) and region.region[-1].min.same_as(last)

    return ends_with(node.writes[0]) and all(ends_with(r) for r in node.reads)
