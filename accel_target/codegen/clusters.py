"""Convolutions of a nest on several clusters, with transfers between them: :func:`spread`.

List scheduling: in topological order, each convolution goes to the cluster with the least work so
far (products over PEs, and bytes of weights over bytes of buffers) among those that links join to
the clusters of its neighbours. Those that share a weight, a sum or a result stay together. While a
strip is in one cluster, the strips before and after it are in others: the cores of a chain form a
pipeline, and the branches of a parallel train run at the same time.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import networkx as nx

from ttsnn.accel_target.arch import Architecture
from ttsnn.accel_target.codegen.builder import Builder
from ttsnn.accel_target.codegen.nest import Nest, Step, Term, Value
from ttsnn.accel_target.isa import Flag, Format, Level, Op

__all__ = ["spread"]


def spread(nest: Nest, b: Builder) -> Nest:
    """The nest with its convolutions on clusters; unchanged where there is but one."""
    arch = b.arch
    if len(arch.clusters) == 1:
        return nest
    nest.steps = _branches(nest.steps, b)
    compute = [s for s in nest.steps if s.op in (Op.GEMM, Op.WGRAD)]
    where = _assign(compute, nest, arch)
    for s in compute:
        s.unit = b.compute(where[id(s)])
        for p in [t.weight for t in s.terms] + ([s.sum] if s.sum else []):
            p.cluster = where[id(s)]
    _place_values(nest, compute, where, arch)
    _place_params(nest, compute, arch)
    nest.steps = _transfers(nest, compute, where, b)
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


def _assign(compute: list[Step], nest: Nest, arch: Architecture) -> dict[int, int]:
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
    near: dict[int, set[int]] = {}
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
            near.setdefault(a, set()).add(c)
            near.setdefault(c, set()).add(a)
    sets: dict[int, list[Step]] = {}
    for s in compute:
        sets.setdefault(together[id(s)], []).append(s)
    work = sum(map(_work, compute)) or 1
    held = sum(_held(m) for m in sets.values()) or 1
    load = [0.0] * len(arch.clusters)
    chosen: dict[int, int] = {}
    for root, members in sets.items():
        share = sum(map(_work, members)) / work
        room = _held(members) / held
        allowed = [
            c
            for c in range(len(arch.clusters))
            if all(
                chosen[n] == c or ((chosen[n], c) in joined and (c, chosen[n]) in joined)
                for n in near.get(root, ())
                if n in chosen
            )
        ] or [0]

        def after(c: int, share: float = share, room: float = room) -> float:
            cluster = arch.clusters[c]
            return (
                load[c]
                + share * arch.pes / cluster.pes
                + (room * arch.buffer_bytes / cluster.buffer_bytes)
            )

        best = min(allowed, key=after)
        load[best] = after(best)
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


def _readers(compute: list[Step], where: dict[int, int]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for s in compute:
        for v in (*s.ins, *(t.x for t in s.terms)):
            if where[id(s)] not in out.setdefault(id(v), []):
                out[id(v)].append(where[id(s)])
    return out


def _place_values(
    nest: Nest, compute: list[Step], where: dict[int, int], arch: Architecture
) -> None:
    """A value lies where it is made; what no cluster makes, where it is read, or where room is."""
    joined, readers = _joined(arch), _readers(compute, where)
    made = {id(v): where[id(s)] for s in compute for v in s.outs}
    used = [0.0] * len(arch.clusters)
    for p in nest.params():
        used[p.cluster] += prod(p.shape) / arch.clusters[p.cluster].buffer_bytes
    rest = []
    for v in nest.values():
        if id(v) in made:
            v.cluster = made[id(v)]
        elif id(v) in readers:
            places = readers[id(v)]
            v.cluster = max(places, key=lambda c: sum((c, o) in joined for o in places))
        else:
            rest.append(v)
            continue
        used[v.cluster] += _size(v) / arch.clusters[v.cluster].buffer_bytes
    for v in sorted(rest, key=_size, reverse=True):
        v.cluster = min(range(len(used)), key=used.__getitem__)
        used[v.cluster] += _size(v) / arch.clusters[v.cluster].buffer_bytes


def _size(v: Value) -> float:
    """About the bytes of a row."""
    wide = {Format.SPIKE: 0.125, Format.WEIGHT: 1, Format.ACTIVATION: 1}.get(v.format, 2)
    return v.width * (16 if v.grouped else 3 * v.channels) * wide


def _place_params(nest: Nest, compute: list[Step], arch: Architecture) -> None:
    """What only the other units read lies where room is."""
    bound = {id(t.weight) for s in compute for t in s.terms}
    bound |= {id(s.sum) for s in compute if s.sum is not None}
    used = [0.0] * len(arch.clusters)
    for p in nest.params():
        if id(p) in bound:
            used[p.cluster] += prod(p.shape) / arch.clusters[p.cluster].buffer_bytes
    for p in nest.params():
        if id(p) not in bound:
            p.cluster = min(range(len(used)), key=used.__getitem__)
            used[p.cluster] += prod(p.shape) / arch.clusters[p.cluster].buffer_bytes


def _transfers(nest: Nest, compute: list[Step], where: dict[int, int], b: Builder) -> list[Step]:
    """Steps with copies of values on the clusters that read them."""
    joined = _joined(b.arch)
    copies: dict[tuple[int, int], Value] = {}
    mine = {id(s) for s in compute}
    home: dict[int, Value] = {}
    extra: dict[tuple[int, int], Step] = {}

    def at(v: Value, cluster: int, s: Step) -> Value:
        if v.cluster == cluster:
            return v
        key = (id(v), cluster)
        if key in copies:
            return copies[key]
        copy = replace(
            v,
            name=f"{v.name}@{b.arch.clusters[cluster].name}",
            cluster=cluster,
            store=None,
            prefer=Level.INPUT,
        )
        if (v.cluster, cluster) in joined:
            copy.load = None
            group = s.group if v.grouped else None
            extra[key] = Step(
                Op.XFER, b.link(v.cluster), s.tag, outs=(copy,), ins=(v,), group=group
            )
        elif v.load is None:
            maker = next(m for m in nest.steps if v in m.outs)
            outs = tuple(copy if o is v else replace(o, store=None) for o in maker.outs)
            extra[key] = replace(maker, outs=outs)
        copies[key] = copy
        home[id(copy)] = v
        return copy

    out: list[Step] = []
    for s in nest.steps:
        if s.op == Op.XFER:
            s = replace(s, unit=b.link(s.ins[0].cluster))
            if s.ins[0].cluster == s.outs[0].cluster:  # both branches on one cluster
                s = replace(s, op=Op.VEC, unit=2, flags=int(Flag.ACC))
            out.append(s)
            continue
        if id(s) not in mine:
            out.append(s)
            continue
        before = len(extra)
        terms = tuple(
            Term(at(t.x, where[id(s)], s), t.weight, t.geometry, t.flags) for t in s.terms
        )
        ins = tuple(at(v, where[id(s)], s) for v in s.ins)
        out += list(extra.values())[before:]
        out.append(replace(s, terms=terms, ins=ins))
    return out
