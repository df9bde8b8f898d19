"""How the cores of a TT convolution are contracted: forms, their stages, their weights.

A chain of cores is a list of *stages* (tap convolutions). ``stt`` has g1, g2, g3, g4; ``ptt``
has g1, cross, g4, where *cross* joins the two branches ½(g2 + g3) into one convolution whose
taps form a cross (Kh + Kw − 1 taps: the branches share their centre). The other timesteps of
``htt`` have g1, g4.

A *form* says which neighbours of the chain are merged into one stage, as text: ``g1|cross|g4``
keeps the chain, ``g1*cross|g4`` merges the first two, ``g1*cross*g4`` is a dense weight of five
taps. Where it pays is for a target's cost model to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import prod

import networkx as nx
import numpy as np

from ttsnn.errors import PassError
from ttsnn.ops import TTConvAttrs
from ttsnn.passes.layers.config import Stage

__all__ = [
    "CHAINS",
    "Contraction",
    "Form",
    "chain_of",
    "contract",
    "contraction_graph",
    "form_text",
    "forms_of",
    "groupings",
    "merge",
    "parse_form",
    "stage_macs",
]

Contraction = tuple[Stage, np.ndarray]
"""A stage and its weight [taps, Cin, Cout]."""

Form = tuple[tuple[str, ...], ...]
"""Groups of neighbouring cores, each merged into one."""

CHAINS = {"stt": ("g1", "g2", "g3", "g4"), "ptt": ("g1", "cross", "g4"), "half": ("g1", "g4")}
"""Cores in order, for each kind of timestep: htt has ``ptt`` and ``half``."""


def forms_of(kind: str) -> list[Form]:
    """All ways to merge neighbours of a chain: the unmerged chain first, the dense form last."""
    return groupings(CHAINS[kind])


def groupings(chain: Sequence[str]) -> list[Form]:
    """All ways to group neighbours: every name alone first, all together last."""
    cuts = range(1, len(chain))
    out = []
    for count in range(len(chain) - 1, -1, -1):
        for chosen in combinations(cuts, count):
            edges = [0, *chosen, len(chain)]
            out.append(tuple(tuple(chain[a:b]) for a, b in pairwise(edges)))
    return out


def form_text(form: Form) -> str:
    """``(("g1", "cross"), ("g4",))`` → ``"g1*cross|g4"``."""
    return "|".join("*".join(group) for group in form)


def parse_form(text: str, kind: str) -> Form:
    """Inverse of :func:`form_text`; the names ``chain`` and ``dense`` stand for the extremes.

    Raises:
        PassError: for a text that is no form of the chain.
    """
    forms = forms_of(kind)
    named = {"chain": forms[0], "dense": forms[-1]} | {form_text(f): f for f in forms}
    if text not in named:
        raise PassError(f"no form {text!r} of a {kind} chain; there are {', '.join(named)}")
    return named[text]


def stage_macs(stage: Stage) -> int:
    """Multiply-accumulates of one image and timestep, taps outside the image included."""
    return len(stage.taps) * stage.in_channels * stage.out_channels * prod(stage.out_size)


def chain_of(
    kind: str,
    attrs: TTConvAttrs,
    cores: Sequence[np.ndarray],
    in_size: tuple[int, int],
) -> dict[str, Contraction]:
    """The unmerged chain of a TT convolution, by name.

    Args:
        kind: ``stt``, ``ptt`` or ``half``.
        attrs: strides, padding and dilation.
        cores: g1, g2, g3, g4.
        in_size: height and width of the input.
    """
    g1, g2, g3, g4 = (np.asarray(g) for g in cores)
    kh, kw = g2.shape[2], g3.shape[2]
    top, left = attrs.padding[:2]
    size = attrs.out_size(in_size, (kh, kw))
    rows = [k * attrs.dilation[0] - top for k in range(kh)]
    columns = [k * attrs.dilation[1] - left for k in range(kw)]
    centre = (rows[kh // 2], columns[kw // 2])

    def stage(taps, before, after, weight, strides=(1, 1)) -> Contraction:
        weight = np.ascontiguousarray(weight)
        _, cin, cout = weight.shape
        return Stage(tuple(taps), before, after, cin, cout, strides), weight

    first = stage([(0, 0)], in_size, in_size, g1.T[None])
    last = stage([(0, 0)], size, size, g4.T[None])
    if kind == "half":
        first = stage([centre], in_size, size, g1.T[None], attrs.strides)
        return {"g1": first, "g4": last}
    vertical, horizontal = g2.transpose(2, 1, 0), g3.transpose(2, 1, 0)
    if kind == "stt":
        middle = (size[0], in_size[1])
        v = stage([(r, 0) for r in rows], in_size, middle, vertical, (attrs.strides[0], 1))
        h = stage([(0, c) for c in columns], middle, size, horizontal, (1, attrs.strides[1]))
        return {"g1": first, "g2": v, "g3": h, "g4": last}
    taps = [(r, centre[1]) for r in rows] + [(centre[0], c) for c in columns]
    both = np.concatenate([vertical, horizontal]) * np.asarray(0.5, g2.dtype)
    places, weight = _unique(taps, both)
    cross = stage(places, in_size, size, weight, attrs.strides)
    return {"g1": first, "cross": cross, "g4": last}


def _unique(taps: Sequence[tuple[int, int]], weight: np.ndarray) -> tuple[list, np.ndarray]:
    """Taps at the same place become one, their weights added."""
    places = list(dict.fromkeys(taps))
    out = np.zeros((len(places), *weight.shape[1:]), weight.dtype)
    for tap, w in zip(taps, weight):
        out[places.index(tap)] += w
    return places, out


def merge(first: Contraction, second: Contraction) -> Contraction:
    """The one convolution that equals two after another.

    With ``y[o] = Σ_b z[s_b·o + b] W_b`` and ``z[p] = Σ_a x[s_a·p + a] W_a`` the taps are
    ``s_a·b + a`` and the strides multiply. That holds at the border too where, in each
    direction, the second never reads outside z or the first has no extent and no stride there.

    Raises:
        PassError: where it does not hold.
    """
    (a, wa), (b, wb) = first, second
    for d in (0, 1):
        last = (b.out_size[d] - 1) * b.strides[d]
        inside = all(t[d] >= 0 and last + t[d] < a.out_size[d] for t in b.taps)
        plain = (
            all(t[d] == 0 for t in a.taps) and a.strides[d] == 1 and a.in_size[d] == a.out_size[d]
        )
        if not (inside or plain):
            raise PassError(f"stages {a} and {b} cannot be merged: the second reads padding")
    taps = [
        (a.strides[0] * tb[0] + ta[0], a.strides[1] * tb[1] + ta[1])
        for tb in b.taps
        for ta in a.taps
    ]
    weight = np.einsum("aim,bmo->baio", wa.astype(np.float64), wb.astype(np.float64))
    weight = weight.reshape(len(taps), *weight.shape[2:])
    places, weight = _unique(taps, weight)
    strides = (a.strides[0] * b.strides[0], a.strides[1] * b.strides[1])
    stage = Stage(tuple(places), a.in_size, b.out_size, a.in_channels, b.out_channels, strides)
    return stage, weight.astype(wa.dtype)


def contract(chain: Mapping[str, Contraction], form: Form) -> list[Contraction]:
    """The stages of a chain in a form, in order."""
    out = []
    for group in form:
        merged = chain[group[0]]
        for name in group[1:]:
            merged = merge(merged, chain[name])
        out.append(merged)
    return out


def contraction_graph(chain: Mapping[str, Contraction], form: Form) -> nx.DiGraph:
    """Dependences between the contractions of a form; nodes carry ``stage`` and ``macs``.

    A scheduler walks it in topological order onto the lanes of its target.
    """
    graph = nx.DiGraph()
    before = None
    for group, (stage, _) in zip(form, contract(chain, form)):
        node = "*".join(group)
        graph.add_node(node, stage=stage, macs=stage_macs(stage))
        if before is not None:
            graph.add_edge(before, node)
        before = node
    return graph
