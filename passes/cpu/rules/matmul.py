"""Rule for matrix products: register tiles of rows × vectors of columns.

It takes functions with one sum of products ``C[…, i, j] += A[…, i, k] · B[…, k, j]`` whose result
and second operand have the columns ``j`` innermost, and elementwise blocks before and after it.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Range
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV, ScheduleError
from tvm.s_tir.stmt import SBlock
from tvm.target import Target
from tvm.tirx import IntImm, IterVar, PrimFunc, Var

from ttsnn.passes.cpu.isa import isa_of

__all__ = ["matmul_rule"]

ROWS = 8
"""Rows of a register tile, where the number of rows is known."""


def matmul_rule(func: PrimFunc, target: Target) -> Schedule | None:
    """Schedule a matrix product; None where ``func`` is something else."""
    sch = Schedule(func, error_render_level="none")
    try:
        root = sch.get_sblock("root")
        blocks = list(sch.get_child_blocks(root))
    except (ScheduleError, ValueError, IndexError, RuntimeError):
        return None
    products = [b for b in blocks if sch.get(b).init is not None]
    if len(products) != 1 or not all(
        _is_product(sch.get(b)) if b is products[0] else _is_pointwise(sch.get(b)) for b in blocks
    ):
        return None
    product = products[0]
    results = {sch.get(b).name_hint for b in sch.get_output_blocks(root)}
    rest = []
    for block in blocks:
        if block is product:
            continue
        try:
            if sch.get(block).name_hint in results:
                raise ScheduleError
            sch.compute_inline(block)
        except ScheduleError:
            rest.append(block)
    if not _reads_columns(sch.get(product)):
        return None
    lanes = isa_of(target).lanes(str(sch.get(product).writes[0].source.dtype))
    _tile(sch, product, lanes)
    for block in rest:
        _spread(sch, block, lanes)
    return sch


def _kinds(block: SBlock) -> list[int]:
    return [int(v.iter_type) for v in block.iter_vars]


def _is_pointwise(block: SBlock) -> bool:
    return all(k == int(IterVar.DataPar) for k in _kinds(block))


def _is_product(block: SBlock) -> bool:
    """Whether the block adds up products of two operands over one axis."""
    body, kinds = block.body, _kinds(block)
    if kinds.count(int(IterVar.CommReduce)) != 1 or len(block.reads) != 2:
        return False
    return (
        isinstance(body, tirx.BufferStore)
        and isinstance(body.value, tirx.Add)
        and isinstance(body.value.b, tirx.Mul)
    )


def _last(region: list[Range]) -> Var | None:
    return region[-1].min if region and isinstance(region[-1].min, Var) else None


def _reads_columns(block: SBlock) -> bool:
    """Whether the columns of the result are innermost in the second operand only."""
    column = _column(block)
    if column is None or len(block.reads) != 2:
        return False
    first, second = (list(r.region) for r in block.reads)
    if _mentions(first, column):
        first, second = second, first
    last = _last(second)
    return not _mentions(first, column) and last is not None and last.same_as(column)


def _column(block: SBlock) -> Var | None:
    """The innermost axis of the result, where it is the last of the block's spatial axes."""
    spatial = [v.var for v in block.iter_vars if int(v.iter_type) == int(IterVar.DataPar)]
    last = _last(list(block.writes[0].region))
    return last if spatial and last is not None and last.same_as(spatial[-1]) else None


def _mentions(region: list[Range], var: Var) -> bool:
    return any(var.same_as(v) for r in region for v in tirx.analysis.undefined_vars(r.min))


def _divisor(extent: int | None, most: int) -> int:
    """The largest divisor of a size up to ``most``; 1 for a symbolic one."""
    return 1 if extent is None else next(d for d in range(most, 0, -1) if extent % d == 0)


def _height(rows: list[int | None]) -> int:
    """Rows of a tile of fused axes.

    A tile is a part of the innermost axis, or several whole ones within the next: the region of
    one that starts or ends in between is no box, and its copy would go astray.
    """
    if None in rows:
        return 1
    height = 1
    for extent in reversed(rows):
        part = _divisor(extent, max(1, ROWS // height))
        height *= part
        if part != extent:
            break
    return height


def _extent(sch: Schedule, loop: LoopRV) -> int | None:
    extent = sch.get(loop).extent
    return int(extent) if isinstance(extent, IntImm) else None


def _tile(sch: Schedule, product: SBlockRV, lanes: int) -> None:
    block = sch.get(product)
    loops = sch.get_loops(product)
    kinds = _kinds(block)
    rows = [lp for lp, k in zip(loops, kinds) if k == int(IterVar.DataPar)]
    (depth,) = (lp for lp, k in zip(loops, kinds) if k == int(IterVar.CommReduce))
    column = rows.pop()
    shared = _last(list(block.writes[0].region))
    second = next(r for r in block.reads if _mentions(list(r.region), shared))
    row_vars = [v.var for v, k in zip(block.iter_vars, kinds) if k == int(IterVar.DataPar)][:-1]
    extents = [_extent(sch, lp) for lp in rows[-1:]]
    if len(rows) > 1 and not any(_mentions(list(second.region), v) for v in row_vars):
        # one weight for all: batch axes are rows too
        extents = [_extent(sch, lp) for lp in rows]
        rows = [sch.fuse(*rows)]
    width = _extent(sch, column)
    vector = _divisor(width, lanes)
    height = _height(extents)
    if width is not None and vector < lanes // 2 and width <= 16 * lanes:
        # no good divisor: the row is one odd vector, which LLVM splits
        vector, height = width, height if width <= lanes else 1
    vectors = _divisor(width // vector if width else None, 4 if height < 4 else 2)
    tall = []
    if height > 1:
        outer, inner = sch.split(rows[-1], [None, height])
        rows[-1], tall = outer, [inner]
    j_outer, j_vectors, j = sch.split(column, [None, vectors, vector])
    k_outer, k = sch.split(depth, [None, _divisor(_extent(sch, depth), 4)])
    sch.reorder(*rows, j_outer, k_outer, k, *tall, j_vectors, j)
    local = sch.cache_write(product, 0, "local")
    sch.reverse_compute_at(local, j_outer, preserve_unit_loops=True)
    sch.vectorize(j)
    for loop in (k, *tall, j_vectors):
        sch.unroll(loop)
    _unroll_copy(sch, sch.get_loops(local)[len(rows) + 1 :], vector)
    unit = sch.fuse(*rows, j_outer) if rows else j_outer
    sch.parallel(unit)
    init = sch.decompose_reduction(product, k_outer)
    for loop in sch.get_loops(init)[1:-1]:
        sch.unroll(loop)


def _unroll_copy(sch: Schedule, loops: list[LoopRV], vector: int) -> None:
    """Store a register tile by vectors."""
    extent = _extent(sch, loops[-1])
    if extent is not None and extent > vector:
        outer, inner = sch.split(loops[-1], [None, vector])
        sch.unroll(outer)
    else:
        inner = loops[-1]
    sch.vectorize(inner)
    for loop in loops[:-1]:
        sch.unroll(loop)


def _spread(sch: Schedule, block: SBlockRV, lanes: int) -> None:
    """An elementwise block after the product: rows in parallel, columns in vectors."""
    loops = sch.get_loops(block)
    vector = _divisor(_extent(sch, loops[-1]), lanes)
    outer, inner = sch.split(loops[-1], [None, vector])
    sch.vectorize(inner)
    sch.parallel(sch.fuse(*loops[:-1], outer))
