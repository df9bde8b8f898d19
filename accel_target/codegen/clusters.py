"""Convolutions of a nest on several clusters, with transfers between them: :func:`spread`; or on
all clusters at once: :func:`join_clusters`.

A cluster's results lie in its own buffers; its first operand (of a weight gradient, both) may come
through a link from another cluster's.

List scheduling: in topological order, each convolution goes to the cluster with the least work so
far (products over PEs, and bytes of weights and results over bytes of buffers) among those that
links join to the clusters of its neighbours. Those that share a weight, a sum or a result stay
together. While a strip is in one cluster, the strips before and after it are in others: the cores
of a chain form a pipeline, and the branches of a parallel train run at the same time.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import networkx as nx

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.nest import Nest, Step, Value
from ttsnn.accel_target.isa import Flag, Format, Level, Op, UnitKind

__all__ = ["join_clusters", "spread"]


def spread(nest: Nest, b: Builder, taste: float) -> Nest:
    """The nest with its convolutions on clusters; unchanged where there is but one.

    ``taste``: how much a transfer's room counts against work that is shared evenly.
    """
    arch = b.arch
    if len(arch.clusters) == 1:
        return nest
    nest.steps = _branches(nest.steps, b)
    compute = [s for s in nest.steps if s.op in (Op.GEMM, Op.WGRAD)]
    where = _assign(compute, nest, arch, taste)
    for s in compute:
        s.unit = b.compute(where[id(s)])
        for p in [t.weight for t in s.terms] + ([s.sum] if s.sum else []):
            p.cluster = where[id(s)]
    _place_values(nest, compute, where, arch)
    _place_params(nest, compute, arch)
    nest.steps = _links(nest, b)
    return nest


def join_clusters(nest: Nest, arch: Architecture) -> Nest:
    """The nest with its convolutions in lockstep on all clusters, and everything anywhere."""
    for s in nest.steps:
        if s.op == Op.GEMM:
            for t in s.terms:
                t.flags |= Flag.LOCKSTEP
        elif s.op == Op.WGRAD:
            s.flags |= Flag.LOCKSTEP
    anywhere = tuple(range(1, len(arch.clusters)))
    for v in nest.values():
        v.reach = anywhere
    for p in nest.params():
        p.reach = anywhere
    return nest


def _branches(steps: list[Step], b: Builder) -> list[Step]:
    """A convolution that adds up several becomes as many, whose results are added in transfer."""
    out: list[Step] = []
    for s in steps:
        if s.op != Op.GEMM or len(s.terms) == 1 or s.group is not None:
            out.append(s)
            continue
        first, *others = s.terms
        out.append(replace(s, terms=(first,)))
        for k, t in enumerate(others):
            v = s.outs[0]
            part = replace(
                v, name=f"{v.name}.branch{k + 2}", load=None, store=None, prefer=Level.OUTPUT
            )
            out.append(replace(s, terms=(t,), outs=(part,)))
            add = Step(Op.XFER, -1, s.tag, outs=(v,), ins=(part,), flags=int(Flag.ACC), frames=None)
            out.append(add)
    return out


def _work(s: Step) -> int:
    """Products of a step, as if no tap were outside the image."""
    if s.op == Op.WGRAD:
        assert s.geometry is not None
        g, x, y = s.geometry, s.ins[0], s.ins[1]
        return len(g[2]) * g[5] * g[6] * x.channels * y.channels
    total = 0
    for t in s.terms:
        g = t.geometry
        total += len(g[2]) * g[5] * g[6] * prod(t.weight.shape[1:])
    return total


def _assign(compute: list[Step], nest: Nest, arch: Architecture, taste: float) -> dict[int, int]:
    joined = _joined(arch)
    together = nx.utils.UnionFind([id(s) for s in compute])
    owner: dict[int, Step] = {}
    for s in compute:
        shared: list[object] = [t.weight for t in s.terms]
        shared += [s.sum] if s.sum is not None else []
        shared += list(s.outs)
        for key in shared:
            if id(key) in owner:
                together.union(id(owner[id(key)]), id(s))
            owner.setdefault(id(key), s)
    makers: dict[int, list[Step]] = {}
    for s in compute:
        for v in s.outs:
            makers.setdefault(id(v), []).append(s)
    # a branch's result is added to the first branch's
    for s in nest.steps:
        if s.op == Op.XFER:
            for m in makers.get(id(s.ins[0]), ()):
                makers.setdefault(id(s.outs[0]), []).append(m)
    near: dict[int, set[tuple[int, bool]]] = {}
    pairs = []
    for s in compute:
        for v in (*s.ins, *(t.x for t in s.terms)):
            pairs += [(m, s) for m in makers.get(id(v), ())]
    for s in nest.steps:
        if s.op == Op.XFER:
            first = [m for m in makers[id(s.outs[0])] if s.outs[0] in m.outs]
            pairs += [(m, f) for m in makers[id(s.ins[0])] for f in first]
    for m, s in pairs:
        a, c = together[id(m)], together[id(s)]
        if a != c:
            near.setdefault(a, set()).add((c, True))
            near.setdefault(c, set()).add((a, False))
    sets: dict[int, list[Step]] = {}
    for s in compute:
        sets.setdefault(together[id(s)], []).append(s)
    work = sum(map(_work, compute)) or 1
    load = [0.0] * len(arch.clusters)
    full = [0.0] * len(arch.clusters)
    held: list[set[int]] = [set() for _ in arch.clusters]
    chosen: dict[int, int] = {}
    for root, members in sets.items():
        share = sum(map(_work, members)) / work
        needs = {id(v): _size(v) for s in members for v in s.outs if not v.grouped}
        allowed = [
            c
            for c in range(len(arch.clusters))
            if all(
                chosen[n] == c or ((c, chosen[n]) if gives else (chosen[n], c)) in joined
                for n, gives in near.get(root, ())
                if n in chosen
            )
        ] or [0]

        def room(c: int, members: list[Step] = members, needs: dict[int, float] = needs) -> float:
            new = sum(n for v, n in needs.items() if v not in held[c]) + _held(members)
            return full[c] + new / arch.clusters[c].buffer_bytes

        def after(c: int, share: float = share) -> float:
            return load[c] + share * arch.pes / arch.clusters[c].pes

        best = min(allowed, key=lambda c: after(c) + taste * room(c))
        load[best], full[best] = after(best), room(best)
        held[best] |= set(needs)
        chosen[root] = best
    return {id(s): chosen[together[id(s)]] for s in compute}


def _held(members: list[Step]) -> int:
    """Elements of weights and sums (which are twice as wide)."""
    seen: dict[int, int] = {}
    for s in members:
        for t in s.terms:
            seen[id(t.weight)] = prod(t.weight.shape)
        if s.sum is not None:
            seen[id(s.sum)] = 2 * prod(s.sum.shape)
    return sum(seen.values())


def _joined(arch: Architecture) -> set[tuple[int, int]]:
    names = [c.name for c in arch.clusters]
    return {(names.index(x.source), names.index(x.destination)) for x in arch.links}


def _size(v: Value) -> float:
    """About the bytes of three rows."""
    wide = {Format.SPIKE: 0.125, Format.WEIGHT: 1, Format.ACTIVATION: 1}.get(v.format, 2)
    return 3 * v.width * v.channels * wide


def _place_values(
    nest: Nest, compute: list[Step], where: dict[int, int], arch: Architecture
) -> None:
    """A result lies in the cluster that makes it, anything else where its readers reach it."""
    joined = _joined(arch)
    clusters = range(len(arch.clusters))
    readers: dict[int, set[int]] = {}
    for s in compute:
        for v in (*s.ins, *(t.x for t in s.terms)):
            readers.setdefault(id(v), set()).add(where[id(s)])
    made = {id(v): where[id(s)] for s in compute for v in s.outs}
    for v in nest.values():
        if id(v) in made:
            v.cluster = made[id(v)]
            continue
        near = readers.get(id(v), set())
        fits = [c for c in clusters if all(c == r or (c, r) in joined for r in near)]
        v.cluster = next((c for c in sorted(near) if c in fits), fits[0])
        v.reach = tuple(c for c in fits if c != v.cluster)


def _place_params(nest: Nest, compute: list[Step], arch: Architecture) -> None:
    """What only the other units read may lie anywhere."""
    bound = {id(t.weight) for s in compute for t in s.terms}
    bound |= {id(s.sum) for s in compute if s.sum is not None}
    for p in nest.params():
        if id(p) not in bound:
            p.reach = tuple(range(1, len(arch.clusters)))


def _links(nest: Nest, b: Builder) -> list[Step]:
    """Sums of branches get their units."""
    out: list[Step] = []
    for s in nest.steps:
        if s.op == Op.XFER:
            s = replace(s, unit=b.link(s.ins[0].cluster))
            if s.ins[0].cluster == s.outs[0].cluster:  # both branches on one cluster
                s = replace(s, op=Op.VEC, unit=int(UnitKind.VECTOR), flags=int(Flag.ACC))
        out.append(s)
    return out
