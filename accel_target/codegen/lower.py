"""Groups of nodes as nests: values, parameters and steps on clusters."""

from __future__ import annotations

import itertools

import networkx as nx

from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.clusters import join_clusters, spread
from ttsnn.accel_target.codegen.fuse import Group
from ttsnn.accel_target.codegen.graph import (
    Conv,
    Graph,
    Image,
    Map,
    Node,
    Rows,
    Sum,
    Tensor,
    WGrad,
)
from ttsnn.accel_target.codegen.nest import Nest, Param, Part, Ref, Step, Term, Value
from ttsnn.accel_target.codegen.options import Options
from ttsnn.accel_target.codegen.sharing import share_weights, take_over
from ttsnn.accel_target.codegen.tiling import plan_nest
from ttsnn.accel_target.isa import Format, Level, Op, Pool, UnitKind
from ttsnn.accel_target.lockstep import can_lockstep
from ttsnn.accel_target.program import DramTensor
from ttsnn.errors import TargetError

__all__ = ["Lowering"]

_UNITS = {
    "vector": UnitKind.VECTOR,
    "lif": UnitKind.LIF,
    "gradient": UnitKind.GRADIENT,
    "optimizer": UnitKind.OPTIMIZER,
}


TASTES = (1.0,)
"""What :func:`~ttsnn.accel_target.codegen.clusters.spread` is tried with."""


class Lowering:
    """Nests of a graph's groups.

    Args:
        graph: the graph.
        groups: its partition.
        b: where DRAM tensors are registered.
        options: of the code generator.
    """

    def __init__(self, graph: Graph, groups: list[Group], b: Builder, options: Options) -> None:
        self.graph, self.b, self.options = graph, b, options
        self._numbers: dict[Tensor, int] = {}
        self._makers: dict[Tensor, set[int]] = {}
        self._users: dict[Tensor, set[int]] = {}
        self._groups = 0
        for g in groups:
            self._add(g)
        for t in graph.inputs:
            self.number(t)

    def _add(self, g: Group) -> int:
        """Note what a group makes and uses; its number."""
        k, self._groups = self._groups, self._groups + 1
        for n in g.nodes:
            for i in n.writes():
                self._makers.setdefault(i.tensor, set()).add(k)
            for t in [*(i.tensor for i in n.reads()), *(r.tensor for r in n.params())]:
                self._users.setdefault(t, set()).add(k)
        return k

    def cut(self, number: int, group: Group, parts: list[Group]) -> list[int]:
        """Parts instead of a group; their numbers."""
        self._forget(number, group)
        return [self._add(p) for p in parts]

    def join(self, number: int, group: Group, parts: list[tuple[int, Group]]) -> None:
        """A group again, instead of its parts."""
        for k, p in parts:
            self._forget(k, p)
        upto, self._groups = self._groups, number
        self._add(group)
        self._groups = upto

    def _forget(self, k: int, group: Group) -> None:
        for n in group.nodes:
            for t in {
                *(i.tensor for i in (*n.writes(), *n.reads())),
                *(r.tensor for r in n.params()),
            }:
                self._makers.get(t, set()).discard(k)
                self._users.get(t, set()).discard(k)

    def number(self, t: Tensor) -> int:
        """Number of a tensor in DRAM."""
        if t not in self._numbers:
            self._numbers[t] = self.b.tensor(
                DramTensor(
                    t.name,
                    t.shape,
                    t.format,
                    t.role,
                    t.host_shape,
                    t.host_axes,
                    host_view=t.host_view,
                )
            )
        return self._numbers[t]

    def nest(self, k: int, group: Group) -> Nest:
        """The nest of group number k, on the clusters where it moves the fewest bytes."""
        if not self.options.clusters or len(self.b.arch.clusters) == 1:
            return _Nest(self, k, group).build(None)
        if self.options.lockstep and can_lockstep(self.b.arch):
            return join_clusters(_Nest(self, k, group).build(None), self.b.arch)
        best: tuple[float, Nest] | None = None
        for taste in TASTES:
            nest = _Nest(self, k, group).build(taste)
            if len({s.unit for s in nest.steps if s.op in (Op.GEMM, Op.WGRAD)}) == 0:
                return nest
            try:
                traffic = plan_nest(nest, self.b.arch, False).traffic
            except TargetError:
                traffic = float("inf")
            # an even share of work is worth something too
            if best is None or traffic < 0.98 * best[0]:
                best = traffic, nest
        assert best is not None
        return best[1]

    def kept(self, t: Tensor, group: int) -> bool:
        """Whether a value made in a group must be in DRAM afterwards."""
        return t.role == "output" or any(u != group for u in self._users.get(t, ()))


class _Nest:
    def __init__(self, lowering: Lowering, number: int, group: Group) -> None:
        self.low, self.number, self.group = lowering, number, group
        self.b = lowering.b
        tag = group.nodes[0].tag
        self.nest = Nest(tag.layer, group.steps[1], group.images, tag=self.b.tag(tag))
        self.values: dict[Tensor, Value] = {}
        self.params: dict[object, Param] = {}
        self.sums: dict[tuple[Part, ...], Param] = {}
        self.grouped = self._grouping()

    # -- which values exist for one block of channels at a time --

    def _grouping(self) -> dict[Tensor, int]:
        """Tensor → number of its group of steps."""
        made: dict[Tensor, Node] = {}
        users: dict[Tensor, list[Node]] = {}
        for n in self.group.nodes:
            for i in n.reads():
                users.setdefault(i.tensor, []).append(n)
            for i in n.writes():
                made[i.tensor] = n
        candidates: dict[Tensor, bool] = {}
        viewed = self._viewed()
        for t in {*made, *users}:
            if t in viewed:  # its channels are not those of what reads or makes it
                candidates[t] = False
                continue
            uses = users.get(t, [])
            maker = made.get(t)
            if any(
                isinstance(n, Map) and n.geometry is not None
                for n in [*uses, *([maker] if maker else [])]
            ):
                candidates[t] = not self._windowed(t, uses, maker)
                continue
            inner = [n for n in uses if isinstance(n, Conv | WGrad)]
            candidates[t] = all(self._streams(n, t) for n in inner)
        # a convolution may stream its operand or its result, not both: the wider one
        for n in self.group.nodes:
            if not isinstance(n, Conv):
                continue
            x, y = n.terms[0][0].tensor, n.y.tensor
            if candidates.get(x) and candidates.get(y):
                later = [m for m in users.get(y, []) if isinstance(m, Conv | WGrad)]
                narrow = y if x.shape[3] > y.shape[3] or later else x
                candidates[narrow] = False
            elif candidates.get(y) and any(isinstance(m, Conv | WGrad) for m in users.get(y, [])):
                candidates[y] = False
        for n in self.group.nodes:
            if isinstance(n, WGrad) and candidates.get(n.x.tensor) and candidates.get(n.dy.tensor):
                candidates[n.x.tensor] = False
            if (
                isinstance(n, WGrad)
                and n.x.tensor is not n.dy.tensor
                and candidates.get(n.x.tensor)
            ):
                # only gradients stream into both of their uses
                candidates[n.x.tensor] = False
        for t in candidates:
            if t.format == Format.SPIKE and any(
                isinstance(n, Conv | WGrad) for n in users.get(t, [])
            ):
                candidates[t] = False
        # connected values share the loop over channels
        g = nx.Graph()
        for n in self.group.nodes:
            own = [i.tensor for i in [*n.reads(), *n.writes()] if candidates.get(i.tensor)]
            if isinstance(n, Conv) and self.single:  # a weight that others read as an image
                along = n.terms[0][0] if n.transpose else n.y  # it has its last axis
                if candidates.get(along.tensor):
                    own += [r.tensor for r in n.params() if candidates.get(r.tensor)]
            g.add_nodes_from(own)
            g.add_edges_from(itertools.pairwise(own))
        out: dict[Tensor, int] = {}
        order = {t: k for k, t in enumerate(g.nodes)}
        for k, part in enumerate(
            sorted(nx.connected_components(g), key=lambda c: min(order[t] for t in c))
        ):
            for t in part:
                out[t] = k
        return out

    def _viewed(self) -> set[Tensor]:
        """Tensors that a step reads or makes in another width, or with other channels."""
        out: set[Tensor] = set()
        for n in self.group.nodes:
            if isinstance(n, Conv):
                widths = [(i, g[6] if n.transpose else g[4]) for i, _, g, _ in n.terms]
                g = n.terms[0][2]
                widths.append((n.y, g[4] if n.transpose else g[6]))
            elif isinstance(n, WGrad):
                widths = [(n.x, n.geometry[4]), (n.dy, n.geometry[6])]
            elif isinstance(n, Map) and n.flags == Pool.FLAT and n.geometry is not None:
                out |= {i.tensor for i in [*n.ins, *n.outs]}
                continue
            else:
                continue
            out |= {i.tensor for i, width in widths if width != i.shape[1]}
        return out

    def _windowed(self, t: Tensor, uses: list[Node], maker: Node | None) -> bool:
        """Whether a pool reads or makes it whose other side has other rows."""
        for n in [*uses, *([maker] if maker else [])]:
            if isinstance(n, Map) and n.geometry is not None:
                side = n.outs[0].tensor
                if t is not side:
                    return True
        return False

    def _streams(self, n: Conv | WGrad, t: Tensor) -> bool:
        """Whether a convolution can read an operand block of channels by block of channels."""
        if isinstance(n, WGrad):
            return t is n.dy.tensor
        if any(i.tensor is t and g[2] != ((0, 0),) for i, _, g, _ in n.terms) or len(n.terms) > 1:
            return False
        return all(g[:2] == (1, 1) and g[3:5] == g[5:7] for *_, g, _ in n.terms) and n.transpose

    # -- values and parameters --

    def value(self, image: Image) -> Value:
        t = image.tensor
        if t not in self.values:
            h, w, c = t.shape[1:]
            v = Value(t.name, h, w, c, t.format, grouped=t in self.grouped)
            v.frames = self._window(t)
            step = min(self._first(n, i, v) for n, i in self._uses(t))
            ref = Ref(self.low.number(t) if self._in_dram(t) else -1, step, image.repeat)
            if self.number not in self.low._makers.get(t, ()) or not self._made_here(t):
                v.load = ref
            elif self.low.kept(t, self.number):
                v.store = ref
                v.prefer = Level.OUTPUT
            self.values[t] = v
        return self.values[t]

    def _uses(self, t: Tensor) -> list[tuple[Node, Image]]:
        """Nodes that read or write a tensor, and which of its timesteps."""
        return [
            (n, i) for n in self.group.nodes for i in [*n.reads(), *n.writes()] if i.tensor is t
        ]

    def _first(self, n: Node, i: Image, v: Value) -> int:
        """Timestep of an image's tensor at which the nest, or its value's part of it, begins."""
        if v.frames or i.repeat or not self._short(n):
            return i.step
        assert n.window is not None
        return i.step - n.window[0] + self.group.steps[0]

    def _window(self, t: Tensor) -> tuple[int, int] | None:
        """Timesteps of a tensor that has, or from which are read, not all of the nest's."""
        uses = self._uses(t)
        for n, i in uses:
            if i.repeat or n.window is None or not self._short(n):
                continue
            if t.shape[0] == n.window[1] * self.group.images:
                return n.window
        windows = {n.window if self._short(n) and not i.repeat else None for n, i in uses}
        return windows.pop() if len(windows) == 1 and not self._made_here(t) else None

    def _short(self, n: Node) -> bool:
        """Whether a node works on some of the nest's timesteps."""
        return n.window is not None and n.window[1] < self.group.steps[1]

    def _made_here(self, t: Tensor) -> bool:
        return any(i.tensor is t for n in self.group.nodes for i in n.writes())

    def _in_dram(self, t: Tensor) -> bool:
        return not self._made_here(t) or self.low.kept(t, self.number)

    def param(
        self,
        name: str,
        shape: tuple[int, int, int],
        fmt: Format,
        rows: tuple[Rows, ...],
        tag: int,
    ) -> Param:
        key = (shape, rows)
        if key not in self.params:
            parts = tuple(self._part(r) for r in rows)
            self.params[key] = Param(name, shape, fmt, loads=parts, tag=tag)
        return self.params[key]

    def _part(self, r: Rows) -> Part:
        return Part(self.low.number(r.tensor), r.row, r.count, r.at, r.add)

    # -- steps --

    def build(self, taste: float | None) -> Nest:
        for n in self.group.nodes:
            tag = self.b.tag(n.tag)
            if isinstance(n, Conv):
                step = self._conv(n, tag)
            elif isinstance(n, WGrad):
                step = self._wgrad(n, tag)
            elif isinstance(n, Map):
                step = self._map(n, tag)
            else:
                assert isinstance(n, Sum)
                step = self._sum(n, tag)
            images = [*n.reads(), *n.writes()]
            groups = {self.grouped[i.tensor] for i in images if i.tensor in self.grouped}
            assert len(groups) <= 1, n.tag
            step.group = groups.pop() if groups else None
            if self._short(n):
                step.frames = n.window
                step.time = True
            self.nest.steps.append(step)
        self.nest.steps = _sorted(self.nest.steps)
        if taste is not None:  # where clusters work apart, who reads a tile says where it may lie
            spread(self.nest, self.b, taste)
            self.nest.steps = _sorted(self.nest.steps)
            return self.nest
        if self.single:
            share_weights(self.nest)
        if self.low.options.fusion:
            take_over(self.nest)
        return self.nest

    @property
    def single(self) -> bool:
        """Whether it works on one frame."""
        return self.group.steps[1] * self.group.images == 1

    def _conv(self, n: Conv, tag: int) -> Step:
        terms = []
        for image, weight, geometry, flags in n.terms:
            p = self.param(weight.name, weight.shape, weight.format, weight.rows, tag)
            terms.append(Term(self.value(image), p, geometry, flags))
        return Step(
            Op.GEMM,
            self.b.compute(0),
            tag,
            outs=(self.value(n.y),),
            terms=tuple(terms),
            transpose=n.transpose,
        )

    def _wgrad(self, n: WGrad, tag: int) -> Step:
        stores = tuple(self._part(r) for r in n.rows)
        known = self.sums.get(stores)
        p = known or Param(
            f"{n.tag.layer}.{n.tag.role}",
            n.shape,
            n.rows[0].tensor.format,
            prefer=Level.OUTPUT,
            stores=stores,
            sums=True,
            tag=tag,
            loads=stores if n.more else (),
        )
        self.sums[stores] = p
        return Step(
            Op.WGRAD,
            self.b.compute(0),
            tag,
            ins=(self.value(n.x), self.value(n.dy)),
            sum=p,
            geometry=n.geometry,
            flags=n.flags,
        )

    def _map(self, n: Map, tag: int) -> Step:
        params: tuple[Param, ...] = ()
        if n.rows:
            c = max(r.tensor.shape[3] for r in n.rows)
            width = n.rows[0].tensor.shape[2]
            height = max(r.at + r.count for r in n.rows)
            fmt = n.rows[0].tensor.format
            params = (
                self.param(f"{n.tag.layer}.{n.tag.role}", (height, width, c), fmt, n.rows, tag),
            )
        return Step(
            n.op,
            _UNITS[n.unit],
            tag,
            outs=tuple(map(self.value, n.outs)),
            ins=tuple(map(self.value, n.ins)),
            params=params,
            scalars=n.scalars,
            flags=n.flags,
            geometry=n.geometry,
            transpose=n.transpose,
            time=n.time,
        )

    def _sum(self, n: Sum, tag: int) -> Step:
        key = n.out
        if key not in self.params:
            whole = (Rows(n.out, 0, n.out.shape[1], 0),)
            parts = tuple(self._part(r) for r in whole)
            self.params[key] = Param(
                n.out.name,
                n.out.shape[1:],
                n.out.format,
                stores=parts,
                sums=True,
                tag=tag,
                loads=parts if n.more else (),
            )
        params: tuple[Param, ...] = ()
        if n.rows:
            c, height = n.rows[0].tensor.shape[3], max(r.at + r.count for r in n.rows)
            params = (
                self.param(
                    n.out.name + ".rows", (height, 1, c), n.rows[0].tensor.format, n.rows, tag
                ),
            )
        return Step(
            n.op,
            UnitKind.VECTOR,
            tag,
            ins=tuple(map(self.value, n.ins)),
            params=params,
            sum=self.params[key],
            sum_row=n.row,
            flags=n.flags,
        )


def _sorted(steps: list[Step]) -> list[Step]:
    """Steps in an order in which each group can run as one."""
    key = {id(s): ("g", s.group) if s.group is not None else ("s", i) for i, s in enumerate(steps)}
    graph = nx.DiGraph()
    place: dict[object, int] = {}
    for i, s in enumerate(steps):
        graph.add_node(key[id(s)])
        place.setdefault(key[id(s)], i)
    makers: dict[int, list[Step]] = {}
    for s in steps:
        for v in s.outs:
            makers.setdefault(id(v), []).append(s)
    for s in steps:
        for v in (*s.ins, *(t.x for t in s.terms)):
            for m in makers.get(id(v), ()):
                if key[id(m)] != key[id(s)]:
                    graph.add_edge(key[id(m)], key[id(s)])
    order = {k: i for i, k in enumerate(nx.lexicographical_topological_sort(graph, key=place.get))}
    return sorted(steps, key=lambda s: order[key[id(s)]])
