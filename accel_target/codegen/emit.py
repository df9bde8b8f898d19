"""A planned nest as instructions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from math import prod

from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.nest import Nest, Param, Part, Ref, Step, Term, Value, needed_rows
from ttsnn.accel_target.codegen.tiling import Plan, plan_nest
from ttsnn.accel_target.codegen.updates import Sum, emit_update, last_visits
from ttsnn.accel_target.isa import DRAM, NONE, Flag, Op, UnitKind

__all__ = ["emit_nest"]

_Box = tuple[int, int]


def emit_nest(
    nest: Nest, b: Builder, down: bool, updates: Mapping[int, Nest] | None = None
) -> set[int]:
    """Plan a nest and append its instructions.

    Args:
        nest: the nest.
        b: where instructions go.
        down: allocate from the buffers' ends.
        updates: gradient's number → the optimizer's nest for it, to run at the end.

    Returns:
        The gradients of ``updates`` that stayed on the chip, and so have been worked on.

    Raises:
        TargetError: it does not fit.
    """
    emitter = _Emitter(nest, plan_nest(nest, b.arch, down), b, updates or {})
    emitter.run()
    return emitter.updated


class _Emitter:
    def __init__(self, nest: Nest, plan: Plan, b: Builder, updates: Mapping[int, Nest]) -> None:
        self.nest, self.plan, self.b, self.updates = nest, plan, b, updates
        self.updated: set[int] = set()
        self.refused: set[int] = set()
        self.turn = dict.fromkeys(plan.places, 0)  # copies in use, alternating
        self.touched: set[object] = set()  # sums that hold something
        self.loaded: set[Param] = set()
        self.visits: dict[tuple[Param, int], int] = {}
        self.last_visit = last_visits(nest, plan)

    # -- operands --

    def value(
        self,
        v: Value,
        rows: _Box,
        channels: _Box | None = None,
        frames: _Box | None = None,
        width: int | None = None,
    ) -> int:
        """Box of a value; ``frames`` are timesteps of the nest, where these are not all it has;
        ``width`` is that of the operand, where it sees the value's bytes in another one."""
        place = self.plan.places[v.tile]
        memory, address = place.at[self.turn[v.tile] % len(place.at)]
        size, wide = place.size, v.channels
        if width is not None and width != v.width:
            wide = v.width * v.channels // width
            size = (*size[:2], width, wide)
        first, count = channels or (0, wide)
        if v.grouped:
            first = 0
        start = v.frames[0] if v.frames else 0
        return self.b.tile(
            memory,
            v.format,
            address,
            size,
            (frames[0] - start, frames[1]) if frames else (0, size[0]),
            (rows[0], rows[1] - rows[0]),
            (0, size[2]),
            (first, count),
        )

    def param(
        self, p: Param, rows: _Box | None = None, w: _Box | None = None, c: _Box | None = None
    ) -> int:
        """Box of a resident parameter; boxes are (first, count)."""
        place = self.plan.places[p]
        return self.b.tile(
            place.at[0][0],
            p.format,
            place.at[0][1],
            place.size,
            (0, 1),
            rows or (0, p.shape[0]),
            w or (0, p.shape[1]),
            c or (0, p.shape[2]),
        )

    def block(self, s: Step, p: Param, count: int, axis: str) -> int:
        """The current block of a streamed parameter."""
        place = self.plan.places[s, p]
        w, c = place.size[2], place.size[3]
        return self.b.tile(
            place.at[self.turn[s, p] % 2][0],
            p.format,
            place.at[self.turn[s, p] % 2][1],
            place.size,
            (0, 1),
            (0, p.shape[0]),
            (0, count if axis == "w" else w),
            (0, count if axis == "c" else c),
        )

    def dram(
        self,
        ref: Ref,
        v: Value,
        rows: _Box,
        channels: _Box | None = None,
        part: _Box | None = None,
    ) -> int:
        n = self.nest.N
        first, count = part or (0, self.plan.places[v.tile].size[0])
        if ref.repeat:
            frames = (self.image, count, 0)
        else:
            frames = ((ref.step + self.time + first) * n + self.image, count, n)
        return self.b.dram(
            ref.tensor,
            frames,
            (rows[0], rows[1] - rows[0]),
            (0, v.width),
            channels or (0, v.channels),
        )

    # -- the loops --

    def run(self) -> None:
        nest, plan = self.nest, self.plan
        for self.image in range(nest.N):
            for self.time in range(0, nest.T, plan.frames):
                for strip in plan.flow.strips:
                    for item, start, stop in strip:
                        self.item(item, (start, stop))
        for p in nest.params():
            if not p.stores or any(q is p for _, q in plan.streams):
                continue
            place = plan.places[p]
            total = Sum(p, place.size, place.at[0], (0, p.shape[1]), (0, p.shape[2]))
            self.update(total, [q for q in plan.places if isinstance(q, Param) and q.sums])
            for part in p.stores:
                if part.tensor not in self.updated:
                    self.store_part(p, part)

    def update(self, total: Sum, keys: Iterable[object]) -> set[int]:
        """Run the optimizer on a complete sum, beside what lies at some of the plan's places.

        Returns the gradients that it has worked on, which need not be stored.
        """
        held = []
        for key in keys:
            place = self.plan.places[key]
            of = key[1] if isinstance(key, tuple) else key
            assert isinstance(of, Value | Param)
            row = -(-prod(place.size) // place.size[1] * self.b.bits[of.format] // 8)
            held += [(at, row * place.size[1]) for at in place.at]
        done = set()
        for t in dict.fromkeys(part.tensor for part in total.param.stores):
            nest = None if t in self.refused else self.updates.get(t)
            if nest is None:
                continue
            if emit_update(self.b, held, total, nest, t):
                done.add(t)
            else:  # nor are later, smaller blocks worked on: all are, or none
                self.refused.add(t)
        self.updated |= done
        return done

    def update_block(self, s: Step, p: Param, axis: str, box: _Box) -> set[int]:
        """Run the optimizer on a complete block of a streamed sum."""
        place = self.plan.places[s, p]
        w, c = (box, (0, p.shape[2])) if axis == "w" else ((0, p.shape[1]), box)
        total = Sum(p, place.size, place.at[self.turn[s, p] % 2], w, c)
        return self.update(total, self.plan.places)

    def item(self, item, rows: _Box) -> None:
        if isinstance(item, Value):
            self.turn[item] += 1
            self.load(item, item.load, rows, self.nest.tag)
        elif isinstance(item, Step):
            self.prepare(item)
            self.whole(item, rows)
        else:
            self.group([s for s in self.nest.steps if s.group == item], rows)

    def load(self, v: Value, ref: Ref | None, rows: _Box, tag: int, c: _Box | None = None) -> None:
        assert ref is not None
        self.b.emit(
            Op.LOAD,
            UnitKind.LOAD,
            tag,
            dst=self.value(v, rows, c),
            src0=self.dram(ref, v, rows, c),
        )

    def store(self, v: Value, rows: _Box, s: Step, c: _Box | None = None) -> None:
        """Write what a step has made of a value."""
        if v.store is not None:
            part = s.frames if s.frames and not v.frames else None
            self.b.emit(
                Op.STORE,
                UnitKind.STORE,
                s.tag,
                dst=self.dram(v.store, v, rows, c, part),
                src0=self.value(v, rows, c, part),
            )

    def prepare(self, s: Step) -> None:
        """Load the resident parameters that a step reads first."""
        for p in (*s.params, *(t.weight for t in s.terms), *([s.sum] if s.sum else [])):
            self.ensure(p, s.tag)

    def ensure(self, p: Param, tag: int) -> None:
        if p in self.loaded or p not in self.plan.places:
            return
        self.loaded.add(p)
        for part in p.loads:
            self.b.emit(
                Op.LOAD,
                UnitKind.LOAD,
                tag,
                dst=self.param(p, (part.at, part.count)),
                src0=self.part(p, part, (0, p.shape[1]), (0, p.shape[2])),
                flags=Flag.ACC if part.add else 0,
            )
        if p.sums and p.loads:
            self.touched.add(p)

    def part(self, p: Param, part: Part, w: _Box, c: _Box) -> int:
        return self.b.dram(part.tensor, (0, 1, 1), (part.row, part.count), w, c)

    def store_part(self, p: Param, part: Part) -> None:
        self.b.emit(
            Op.STORE,
            UnitKind.STORE,
            p.tag,
            dst=self.part(p, part, (0, p.shape[1]), (0, p.shape[2])),
            src0=self.param(p, (part.at, part.count)),
        )

    # -- steps --

    def whole(self, s: Step, rows: _Box) -> None:
        """A step outside groups."""
        if s.op == Op.GEMM:
            total = s.terms[0].weight.shape[1 if s.transpose else 2]
            block = min(
                (
                    self.plan.streams[s, t.weight]
                    for t in s.terms
                    if (s, t.weight) in self.plan.streams
                ),
                default=total,
            )
            for c0 in range(0, total, block):
                self.gemm(s, rows, (c0, min(block, total - c0)), None)
        elif s.op == Op.WGRAD:
            assert s.sum is not None
            total = s.sum.shape[2]
            block = self.plan.streams.get((s, s.sum), total)
            for c0 in range(0, total, block):
                self.wgrad(s, rows, None, (c0, min(block, total - c0)))
        else:
            self.point(s, rows, None)
        for v in s.outs:
            self.store(v, rows, s)

    def group(self, steps: list[Step], rows: _Box) -> None:
        """Block of channels by block of channels."""
        for s in steps:
            self.prepare(s)
        values = list(
            {
                id(v): v
                for s in steps
                for v in (*s.ins, *(t.x for t in s.terms), *s.outs)
                if v.grouped
            }.values()
        )
        total = values[0].channels
        tiles = [v for v in values if v.over is None]
        block = self.plan.block
        for c0 in range(0, total, block):
            c = (c0, min(block, total - c0))
            loaded: set[int] = set()
            for v in tiles:
                self.turn[v] += 1
            for s in steps:
                own = [t.weight.value for t in s.terms if t.weight.value is not None]
                for v in (*s.ins, *(t.x for t in s.terms), *own):
                    if v.grouped and v.load is not None and id(v) not in loaded:
                        loaded.add(id(v))
                        self.load(v, v.load, rows, s.tag, c)
                if s.op == Op.GEMM:
                    if any(t.x.grouped for t in s.terms):
                        self.gemm(s, rows, None, c)
                    else:
                        self.gemm(s, rows, c, None)
                elif s.op == Op.WGRAD:
                    self.wgrad(
                        s,
                        rows,
                        c if s.ins[0].grouped else None,
                        c if not s.ins[0].grouped else None,
                    )
                else:
                    self.point(s, rows, c)
                for v in s.outs:
                    if v.grouped or c[0] + c[1] == total:
                        self.store(v, rows, s, c if v.grouped else None)

    def gemm(self, s: Step, rows: _Box, out: _Box | None, inner: _Box | None) -> None:
        """One block of output channels (``out``) or of input channels (``inner``)."""
        first = inner is None or inner[0] == 0
        for t in s.terms:
            transposed = s.transpose
            box = out if out is not None else inner
            assert box is not None
            axis = "w" if (inner is not None) != transposed else "c"
            weight = self.weight(s, t, axis, box)
            widths = (t.geometry[6], t.geometry[4])
            wide_in, wide_out = widths if transposed else widths[::-1]
            self.b.emit(
                Op.GEMM,
                s.unit,
                s.tag,
                dst=self.value(s.outs[0], rows, out, s.frames, wide_out),
                src0=self.value(t.x, self.input_rows(s, t, rows), inner, s.frames, wide_in),
                src1=weight,
                attr=self.b.geometry(t.geometry),
                flags=t.flags
                | (Flag.TRANSPOSE if transposed else 0)
                | (0 if first and t is s.terms[0] else Flag.ACC),
            )

    def input_rows(self, s: Step, t: Term, rows: _Box) -> _Box:
        return needed_rows(t.geometry, rows, s.transpose)

    def weight(self, s: Step, t: Term, axis: str, box: _Box) -> int:
        p = t.weight
        if p.value is not None:
            return self.value(p.value, (0, 1), (0, box[1]))
        if (s, p) not in self.plan.streams:
            return self.param(p, None, box if axis == "w" else None, box if axis == "c" else None)
        self.turn[s, p] += 1
        tile = self.block(s, p, box[1], axis)
        place = self.plan.places[s, p]
        for part in p.loads:
            self.b.emit(
                Op.LOAD,
                UnitKind.LOAD,
                s.tag,
                dst=self.b.tile(
                    place.at[self.turn[s, p] % 2][0],
                    p.format,
                    place.at[self.turn[s, p] % 2][1],
                    place.size,
                    (0, 1),
                    (part.at, part.count),
                    (0, box[1] if axis == "w" else p.shape[1]),
                    (0, box[1] if axis == "c" else p.shape[2]),
                ),
                src0=self.part(
                    p,
                    part,
                    box if axis == "w" else (0, p.shape[1]),
                    box if axis == "c" else (0, p.shape[2]),
                ),
                flags=Flag.ACC if part.add else 0,
            )
        return tile

    def wgrad(self, s: Step, rows: _Box, w: _Box | None, c: _Box | None) -> None:
        p = s.sum
        assert p is not None
        assert s.geometry is not None
        x, dy = s.ins
        axis, box = ("w", w) if w is not None else ("c", c)
        assert box is not None
        key = (p, box[0])
        streamed = (s, p) in self.plan.streams
        if streamed:
            self.turn[s, p] += 1
            tile = self.block(s, p, box[1], axis)
            if p.loads:  # sums that an earlier nest began
                self.touched.add(key)
            if key in self.touched:
                self.move_block(Op.LOAD, s, p, axis, box)
        else:
            tile = self.param(p, None, w, c)
            if p in self.touched:
                self.touched.add(key)
        # outside groups a block of channels of dy is a part of a whole value
        self.b.emit(
            Op.WGRAD,
            s.unit,
            s.tag,
            dst=tile,
            src0=self.value(x, needed_rows(s.geometry, rows, False), w, s.frames, s.geometry[4]),
            src1=self.value(dy, rows, c, s.frames, s.geometry[6]),
            attr=self.b.geometry(s.geometry),
            flags=s.flags | (Flag.ACC if key in self.touched else 0),
        )
        self.touched.add(key)
        if streamed:
            self.visits[key] = self.visits.get(key, 0) + 1
            last = self.visits[key] == self.last_visit.get(p)
            done = self.update_block(s, p, axis, box) if last else set()
            self.move_block(Op.STORE, s, p, axis, box, done)

    def move_block(
        self, op: Op, s: Step, p: Param, axis: str, box: _Box, but: Collection[int] = ()
    ) -> None:
        """Load or store a block of a streamed sum, ``but`` for some of its tensors."""
        place = self.plan.places[s, p]
        for part in p.stores:
            if part.tensor in but:
                continue
            tile = self.b.tile(
                place.at[self.turn[s, p] % 2][0],
                p.format,
                place.at[self.turn[s, p] % 2][1],
                place.size,
                (0, 1),
                (part.at, part.count),
                (0, box[1] if axis == "w" else p.shape[1]),
                (0, box[1] if axis == "c" else p.shape[2]),
            )
            far = self.part(
                p,
                part,
                box if axis == "w" else (0, p.shape[1]),
                box if axis == "c" else (0, p.shape[2]),
            )
            unit = UnitKind.LOAD if op == Op.LOAD else UnitKind.STORE
            dst, src = (tile, far) if op == Op.LOAD else (far, tile)
            self.b.emit(op, unit, s.tag, dst=dst, src0=src)

    def point(self, s: Step, rows: _Box, c: _Box | None) -> None:
        """Pixel by pixel or window by window, or a reduction."""
        wide = (s.outs or s.ins)[0].channels
        box = c if c is not None else (0, wide)
        operands = []
        for i, v in enumerate(s.ins):
            r = rows
            if s.geometry is not None and i == 0:  # what follows has the result's rows
                r = needed_rows(s.geometry, rows, s.transpose)
            operands.append(self.value(v, r, (0, box[1]) if v.grouped else c, s.frames))
        for p in s.params:
            operands.append(self.param(p, None, None, box if p.shape[2] == wide else None))
        flags, dst = (
            s.flags,
            [self.value(v, rows, (0, box[1]) if v.grouped else c, s.frames) for v in s.outs],
        )
        if s.sum is not None:
            key = (s.sum, s.sum_row, box[0])
            count = 2 if s.op == Op.BN_SUMS else 1
            dst = [self.param(s.sum, (s.sum_row, count), None, box)]
            if key in self.touched or s.sum in self.touched:
                flags |= Flag.ACC
            self.touched.add(key)
        operands += [NONE] * (3 - len(operands))
        attr = 0
        if s.geometry is not None:
            attr = self.b.geometry(s.geometry)
        elif s.scalars:
            attr = self.b.scalars(s.scalars)
        self.b.emit(
            s.op,
            s.unit,
            s.tag,
            dst=dst[0],
            dst1=dst[1] if len(dst) > 1 else NONE,
            src0=operands[0],
            src1=operands[1],
            src2=operands[2],
            attr=attr,
            flags=flags,
        )


assert DRAM == 0
