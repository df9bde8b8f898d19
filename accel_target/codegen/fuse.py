"""Which nodes run together in one nest: :func:`partition`."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from ttsnn.accel_target.codegen.graph import (
    Conv,
    Graph,
    Image,
    Map,
    Node,
    Small,
    Sum,
    Tensor,
    WGrad,
)
from ttsnn.accel_target.isa import Op

__all__ = ["Group", "partition"]


@dataclass
class Group:
    """Nodes that become one nest, in order.

    Attributes:
        steps: first timestep and number of timesteps.
        images: number of images.
    """

    nodes: list[Node] = field(default_factory=list)
    steps: tuple[int, int] = (0, 1)
    images: int = 1

    @property
    def maps_only(self) -> bool:
        """Whether it has nothing but pointwise nodes and sums of them."""
        return all(isinstance(n, Map | Sum) and _plain(n) for n in self.nodes)

    @property
    def time(self) -> bool:
        """Whether a node needs all timesteps at once."""
        return any(isinstance(n, Map) and n.time for n in self.nodes)


def _plain(n: Node) -> bool:
    """Whether it works pixel by pixel, or spreads pixels over a larger image."""
    return not (isinstance(n, Map) and n.geometry is not None) or _spreads(n)


def _spreads(n: Node) -> bool:
    """Whether it sets pixels that lie a stride apart, and the others to zero."""
    return (
        isinstance(n, Map)
        and n.op == Op.POOLB
        and n.geometry is not None
        and len(n.geometry[2]) == 1
    )


def _range(n: Node, graph: Graph) -> tuple[tuple[int, int], int]:
    """Timesteps and images of a node."""
    images = [*n.writes(), *n.reads()]
    image = images[0]
    if isinstance(n, WGrad):
        image = n.dy
    if n.chain in graph.whole:
        image = graph.gradients[n.chain]
    frames = image.tensor.shape[0]
    count = graph.N if not image.repeat and frames % graph.N == 0 and frames > 1 else 1
    if image.repeat:
        count = frames
    if n.window is not None and n.chain not in graph.whole:
        return n.window, count
    return (image.step, image.steps), count


def partition(graph: Graph) -> list[Group]:
    """Groups of nodes in an order in which they can run.

    Convolutions of one chain run together, with the pointwise nodes that make the gradient they
    begin with where nothing else reads it. Sums join the nest that makes what they sum up.
    Pointwise nodes join each other, and follow a chain that makes their operand, unless they need
    all timesteps.
    """
    groups: list[Group] = []
    made: dict[Tensor, int] = {}  # tensor → last group that writes it
    parts: dict[Tensor, list[tuple[int, int, int]]] = {}  # tensor → (step, end, group)
    home: dict[int, int] = {}  # chain → group
    readers: dict[Tensor, list[Node]] = {}
    for n in graph.nodes:
        for i in n.reads():
            readers.setdefault(i.tensor, []).append(n)

    def latest(images) -> int:
        """Last group that writes some of the timesteps of these images."""
        return max(
            (
                at
                for i in images
                for begin, end, at in parts.get(i.tensor, ())
                if i.repeat or (begin < i.step + i.steps and i.step < end)
            ),
            default=-1,
        )

    def put_off(k: int, at: int) -> None:
        """Run a group's nodes at the beginning of a later one."""
        groups[at].nodes[:0] = groups[k].nodes
        groups[k].nodes = []
        made.update({t: at for t, m in made.items() if m == k})
        home.update({c: at for c, m in home.items() if m == k})
        for t, spans in parts.items():
            parts[t] = [(a, e, at if m == k else m) for a, e, m in spans]

    sources: dict[Tensor, Node] = {}
    for n in _numbers_first(graph.nodes):
        if _source(n, made, readers) or _spread_for(n, readers):
            sources[n.writes()[0].tensor] = n  # with what reads it
            continue
        images = latest(n.reads())
        own = home.get(n.chain, -1) if isinstance(n, WGrad) else -1  # it adds to its own sums
        params = max(
            (
                made.get(r.tensor, -1)
                for r in n.params()
                if made.get(r.tensor, -1) != own or own < 0
            ),
            default=-1,
        )
        at: int | None = None
        steps, count = ((0, 1), 1) if isinstance(n, Small) else _range(n, graph)
        if n.chain >= 0 and not isinstance(n, Small | Sum):
            at = home.get(n.chain)
            if at is None and n.chain in graph.joined:
                at = _continued(images, groups, steps, count, graph)
            if at is None:
                at = _prologue(n, graph, groups, made, readers)
            if at is not None and (params >= at or groups[at].steps != steps):
                at = None
        elif isinstance(n, Sum) and images >= 0 and params < images:
            at = images if _joins(n, groups[images], steps, count) else None
        elif isinstance(n, Sum) and n.out in made and groups[made[n.out]].steps == steps:
            at = made[n.out]  # all rows of a tensor of sums are made together
        elif isinstance(n, Map) and images >= 0 and params < images and _joinable(n):
            g = groups[images]
            whole = any(m.chain in graph.whole for m in g.nodes)
            if _joins(n, g, steps, count) and (g.maps_only or _follows(n, g, whole)):
                at = images
                for k in {made[i.tensor] for i in n.reads() if i.tensor in made} - {at}:
                    if _can_wait(groups, k, at, graph):
                        put_off(k, at)
        if at is not None and (images > at or _late(n, sources, made) >= at):
            at = None
        if at is None:
            groups.append(Group([], steps, count))
            at = len(groups) - 1
        for i in n.reads():
            source = sources.pop(i.tensor, None)
            if source is not None:
                groups[at].nodes.append(source)
                made[i.tensor] = at
        groups[at].nodes.append(n)
        if n.chain >= 0 and not isinstance(n, Small):
            home.setdefault(n.chain, at)
        for i in n.writes():
            parts.setdefault(i.tensor, []).append((i.step, i.step + i.steps, at))
        for t in n.makes():
            parts.setdefault(t, []).append((0, 1 << 30, at))
        for t in [i.tensor for i in n.writes()] + list(n.makes()):
            made[t] = max(made.get(t, -1), at)
    return [g for g in groups if g.nodes]


def _numbers_first(nodes: list[Node]) -> list[Node]:
    """Nodes that compute single numbers from inputs, a learning rate's, then the others."""
    known: set[Tensor] = set()
    first = []
    for n in nodes:
        given = [*(i.tensor for i in n.reads()), *(r.tensor for r in n.params())]
        out = [*(i.tensor for i in n.writes()), *n.makes()]
        if (
            isinstance(n, Map | Small)
            and all(t.role == "input" or t in known for t in given)
            and all(prod(t.shape) == 1 for t in out)
        ):
            known.update(out)
            first.append(n)
    rest = set(map(id, first))
    return first + [n for n in nodes if id(n) not in rest]


def _source(n: Node, made: dict[Tensor, int], readers: dict[Tensor, list[Node]]) -> bool:
    """Whether a pointwise node reads nothing but inputs, and one other of its size reads it."""
    if not isinstance(n, Map) or n.chain >= 0 or n.time or not _plain(n) or len(n.outs) != 1:
        return False
    (out,) = n.outs
    users = readers.get(out.tensor, [])
    given = [*(i.tensor for i in n.ins), *(r.tensor for r in n.params())]
    return (
        len(users) == 1
        and isinstance(users[0], Map)
        and _plain(users[0])
        and not users[0].time
        and out.tensor.role == "temp"
        and all(t.role == "input" and t not in made for t in given)
        and users[0].reads()[0].shape == out.shape
        and all(i.steps == out.steps for i in [*n.ins, *users[0].ins])
    )


def _can_wait(groups: list[Group], k: int, at: int, graph: Graph) -> bool:
    """Whether group k can run as late as group ``at``.

    Two results are added so without either being in DRAM. It must have all timesteps of whole
    chains, and nothing between may read what it makes.
    """
    g, later = groups[k], groups[at]
    if (
        (g.steps, g.images) != (later.steps, later.images)
        or not any(m.chain in graph.whole for m in g.nodes)
        or not all(map(_plain, g.nodes))
        or not all(isinstance(m, Conv | Map) for m in g.nodes)
    ):
        return False
    own = {i.tensor for m in g.nodes for i in m.writes()}
    between = [m for h in groups[k + 1 : at + 1] for m in h.nodes]
    return not any(
        own & {*(i.tensor for i in m.reads()), *(r.tensor for r in m.params())} for m in between
    )


def _joinable(n: Map) -> bool:
    return _plain(n) and not _spreads(n)


def _spread_for(n: Node, readers: dict[Tensor, list[Node]]) -> bool:
    """Whether a node spreads pixels, and one pointwise node alone reads them."""
    if not _spreads(n):
        return False
    (out,) = n.writes()
    users = readers.get(out.tensor, [])
    return (
        len(users) == 1
        and out.tensor.role == "temp"
        and isinstance(users[0], Map)
        and _joinable(users[0])
        and not users[0].time
        and all(i.steps == out.steps for i in users[0].ins)
    )


def _late(n: Node, sources: dict[Tensor, Node], made: dict[Tensor, int]) -> int:
    """Last group that makes what the nodes read that are to come with this one."""
    waiting = [sources[i.tensor] for i in n.reads() if i.tensor in sources]
    return max((made.get(i.tensor, -1) for m in waiting for i in m.reads()), default=-1)


def _continued(
    images: int, groups: list[Group], steps: tuple[int, int], count: int, graph: Graph
) -> int | None:
    """The group that makes a chain's operand, where it has all timesteps of whole chains."""
    if images < 0:
        return None
    g = groups[images]
    whole = any(m.chain in graph.whole for m in g.nodes) or (g.time and g.maps_only)
    same = g.steps == steps and g.images == count and all(map(_plain, g.nodes))
    return images if whole and same else None


def _joins(n: Node, g: Group, steps: tuple[int, int], count: int) -> bool:
    return (
        g.steps == steps
        and g.images == count
        and not any(isinstance(m, Small) for m in g.nodes)
        and all(_plain(m) for m in g.nodes)
        and _sizes(n, g)
    )


def _sizes(n: Node, g: Group) -> bool:
    """Whether its images have the size of what the group makes last."""
    if not g.maps_only:
        return True
    own = (n.reads() or n.writes())[0].shape
    return all(i.shape == own for m in g.nodes for i in [*m.reads(), *m.writes()])


def _follows(n: Map, g: Group, whole: bool) -> bool:
    """Whether a pointwise node may end a chain: it works timestep by timestep, or has them all."""
    made = {i.tensor for m in g.nodes if isinstance(m, Conv | Map) for i in m.writes()}
    inner = {i.tensor for m in g.nodes if isinstance(m, Conv | WGrad) for i in m.reads()}
    own = [i.tensor for i in n.ins if i.tensor in made]
    return (whole or not n.time) and bool(own) and not any(t in inner for t in own)


def _prologue(
    n: Node,
    graph: Graph,
    groups: list[Group],
    made: dict[Tensor, int],
    readers: dict[Tensor, list[Node]],
) -> int | None:
    """The group of pointwise nodes that makes the gradient that a chain begins with."""
    dy: Image | None = graph.gradients.get(n.chain)
    if dy is None or dy.tensor not in made:
        return None
    g = groups[made[dy.tensor]]
    alone = all(m.chain == n.chain for m in readers.get(dy.tensor, []))
    if g.maps_only and not g.time and alone and not any(isinstance(m, Sum) for m in g.nodes):
        return made[dy.tensor]
    return None
