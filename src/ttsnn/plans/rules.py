"""Rules that choose ranks, and the choice of the layers that they apply to."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ttsnn.errors import PlanError
from ttsnn.plans.counting import layer_cost
from ttsnn.plans.info import LayerInfo, find_layer
from ttsnn.plans.paper import paper_ranks
from ttsnn.plans.plan import TTLayer, TTPlan
from ttsnn.tt import (
    Mode,
    check_mode,
    clip_conv_ranks,
    clip_linear_ranks,
    cross_slices,
    evbmf_rank,
    factorize_sizes,
    singular_values,
)

__all__ = ["INCLUDE", "Rule", "eligible_layers", "make_plan", "parse_rule", "plan_for"]

INCLUDE = ("stem", "pointwise", "classifier")
_VALUES = {"rank": "an integer ≥ 1", "ratio": "a number > 1", "energy": "between 0 and 1"}
_FORMS = "'vbmf', 'paper', 'rank=16', 'ratio=8', 'energy=0.95' or a plan file"


@dataclass(frozen=True)
class Rule:
    """How ranks are chosen.

    Attributes:
        kind: ``"vbmf"`` (EVBMF rank of the weight's unfoldings), ``"paper"`` (published ranks),
            ``"rank"`` (one rank everywhere), ``"ratio"`` (each layer's dense parameters / TT
            parameters at least that), ``"energy"`` (share of the squared norm that the fit
            keeps: of the weight for stt and linear, of its cross for ptt and htt).
        value: the rank, the ratio, or the energy.
    """

    kind: str
    value: float | None = None

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"


def parse_rule(text: str) -> Rule:
    """``"vbmf"``, ``"paper"``, ``"rank=16"``, ``"ratio=8"``, ``"energy=0.95"``.

    Raises:
        PlanError: anything else.
    """
    kind, given, number = text.partition("=")
    if kind in ("vbmf", "paper") and not given:
        return Rule(kind)
    if kind not in _VALUES:
        raise PlanError(f"unknown plan rule {text!r}: use {_FORMS}")
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    valid = {
        "rank": value >= 1 and value == int(value) if np.isfinite(value) else False,
        "ratio": value > 1 and np.isfinite(value),
        "energy": 0 < value < 1,
    }[kind]
    if not valid:
        raise PlanError(f"plan rule {text!r}: {kind} is {_VALUES[kind]}, e.g. {_FORMS}")
    return Rule(kind, value)


def eligible_layers(infos: Sequence[LayerInfo], include: Collection[str] = ()) -> list[LayerInfo]:
    """The layers that a rule factorises, in network order.

    Without ``include``: convolutions with an odd kernel larger than 1×1 and without groups,
    except the stem (the first convolution); linear layers except the classifier (the last).

    Args:
        include: ``"stem"``, ``"pointwise"`` (1×1 convolutions), ``"classifier"``, or names of
            layers to add.

    Raises:
        PlanError: a name in ``include`` is no layer of the network.
    """
    names = set(include) - set(INCLUDE)
    for name in sorted(names):
        find_layer(infos, name, "include")
    convs = [i for i in infos if i.kind == "conv2d"]
    linears = [i for i in infos if i.kind == "linear"]

    def wanted(info: LayerInfo) -> bool:
        if info.name in names:
            return True
        if info.groups != 1:
            return False
        if info.kind == "linear":
            return info is not linears[-1] or "classifier" in include
        if any(k % 2 == 0 for k in info.weight_shape[2:]):
            return False
        if info.pointwise and "pointwise" not in include:
            return False
        return info is not convs[0] or "stem" in include

    return [i for i in infos if wanted(i)]


def make_plan(
    infos: Sequence[LayerInfo],
    rule: Rule | str,
    mode: str = "ptt",
    *,
    T: int | None = None,
    timesteps: int | None = None,
    include: Collection[str] = (),
    factors: int = 2,
) -> TTPlan:
    """A plan for a network by a rule.

    Ranks are clipped to what each shape can use and are at least 1. All three ranks of a
    convolution are equal, except where ``energy`` (stt, ptt) finds smaller ones.

    Args:
        infos: the network's dense layers, in network order.
        mode: form of the convolutions (1×1 ones, where included, are always stt).
        T: the network's timesteps, needed by htt.
        timesteps: htt: leading timesteps in full; by default half of T, rounded up.
        include: see :func:`eligible_layers`.
        factors: number of cores of a linear layer.

    Raises:
        PlanError: nothing to factorise, or the rule does not fit the network.
    """
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    mode = check_mode(mode)
    if mode == "htt" and T is None:
        raise PlanError("mode 'htt' needs the number of timesteps T")
    if mode != "htt" and timesteps is not None:
        raise PlanError(f"timesteps are for mode 'htt', not for {mode!r}")
    chosen = eligible_layers(infos, include)
    if rule.kind == "paper":
        published = [i for i in chosen if i.kind == "conv2d" and i in eligible_layers(infos)]
        ranks = dict(zip([i.name for i in published], paper_ranks(published), strict=True))
        chosen = [i for i in chosen if i.name in ranks]
    if not chosen:
        raise PlanError(
            "no layer to factorise: the stem, 1×1 and grouped convolutions and the classifier stay "
            f"dense; include one of {', '.join(INCLUDE)}, or a layer by its name"
        )
    layers: dict[str, TTLayer] = {}
    notes: dict[str, list[str]] = {}
    for info in chosen:
        try:
            draft = _unranked(info, mode, T, timesteps, factors)
            if rule.kind == "paper":
                layers[info.name] = _with_rank(info, draft, ranks[info.name])
            else:
                layers[info.name], note = _apply(rule, info, draft)
                if note:
                    notes.setdefault(note, []).append(info.name)
            cost = layer_cost(info, layers[info.name])
            if cost.params > cost.dense_params:
                notes.setdefault("more parameters than dense", []).append(info.name)
        except PlanError as error:
            prefix = f"layer {info.name!r}: "
            raise PlanError(prefix + str(error).removeprefix(prefix)) from None
    uses_time = any(layer.mode == "htt" for layer in layers.values())
    remarks = tuple(f"{note}: {_listed(names)}" for note, names in notes.items())
    return TTPlan(layers, rule=str(rule), T=T if uses_time else None, notes=remarks)


def _listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def plan_for(
    source: str | os.PathLike | TTPlan | Rule,
    infos: Sequence[LayerInfo],
    mode: str = "ptt",
    *,
    T: int | None = None,
    timesteps: int | None = None,
    include: Collection[str] = (),
) -> TTPlan:
    """A plan from whatever a user gives: a plan, a rule, a rule's text, or a plan file.

    A plan or a file says the mode of each layer itself; ``mode`` and what follows it only
    concern rules. The plan is checked against the network.

    Raises:
        PlanError: neither a rule nor a readable plan, or it does not fit the network.
    """
    if isinstance(source, TTPlan):
        plan = source
    elif isinstance(source, Rule):
        plan = make_plan(infos, source, mode, T=T, timesteps=timesteps, include=include)
    else:
        text = os.fspath(source)
        path = Path(text)
        if path.is_file() or text.endswith(".json") or os.sep in text:
            plan = TTPlan.load(path)
        else:
            plan = make_plan(
                infos, parse_rule(text), mode, T=T, timesteps=timesteps, include=include
            )
    plan.check(infos, T)
    return plan


def _unranked(
    info: LayerInfo, mode: Mode, T: int | None, timesteps: int | None, factors: int
) -> TTLayer:
    """The layer's form with the largest ranks that its shape can use."""
    if info.kind == "linear":
        m = factorize_sizes(info.weight_shape[0], factors)
        n = factorize_sizes(info.weight_shape[1], factors)[::-1]  # large beside small
        return TTLayer("linear", "tt", clip_linear_ranks(m, n, 2**31), None, m, n)
    form: Mode = "stt" if info.pointwise else mode
    full = None
    if form == "htt":
        full = (int(T or 1) + 1) // 2 if timesteps is None else timesteps
    ranks = clip_conv_ranks(info.weight_shape, form, 2**31)
    return TTLayer("conv2d", form, ranks, full)


def _with_rank(info: LayerInfo, draft: TTLayer, rank: int | Sequence[int]) -> TTLayer:
    if draft.kind == "linear":
        ranks = clip_linear_ranks(draft.out_factors, draft.in_factors, rank)
    else:
        ranks = clip_conv_ranks(info.weight_shape, check_mode(draft.mode), rank)
    return replace(draft, ranks=ranks)


def _apply(rule: Rule, info: LayerInfo, draft: TTLayer) -> tuple[TTLayer, str]:
    """The layer with the rule's ranks, and a remark where there is one."""
    if rule.kind == "rank":
        return _with_rank(info, draft, int(rule.value or 1)), ""
    if rule.kind == "ratio":
        return _by_ratio(float(rule.value or 1), info, draft)
    if rule.kind == "energy":
        return _by_energy(float(rule.value or 1), info, draft), ""
    if rule.kind == "vbmf":
        return _by_vbmf(info, draft)
    raise PlanError(f"unknown plan rule {rule.kind!r}: use {_FORMS}")


def _by_ratio(ratio: float, info: LayerInfo, draft: TTLayer) -> tuple[TTLayer, str]:
    dense = layer_cost(info).dense_params - info.bias

    def params(rank: int) -> int:
        return layer_cost(info, _with_rank(info, draft, rank)).params - info.bias

    low, high = 1, max(draft.ranks, default=1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if params(middle) * ratio <= dense else (low, middle - 1)
    note = "" if params(low) * ratio <= dense else f"even rank 1 misses the ratio {ratio:g}"
    return _with_rank(info, draft, low), note


def _unfoldings(info: LayerInfo, draft: TTLayer, *, cross: bool) -> list[NDArray]:
    """The matrices whose ranks are the layer's TT-ranks, from r1 on.

    stt and linear: the cuts of the tensor that TT-SVD factorises. ptt and htt: the input-channel
    and output-channel unfoldings, of the cross of the weight or of all of it.
    """
    w = info.values()
    if draft.kind == "linear":
        d = len(draft.out_factors)
        order = [axis for k in range(d) for axis in (k, d + k)]
        tensor = w.reshape(*draft.out_factors, *draft.in_factors).transpose(order)
        sizes = [m * n for m, n in zip(draft.out_factors, draft.in_factors)]
        return [tensor.reshape(int(np.prod(sizes[:k])), -1) for k in range(1, d)]
    cout, cin, kh, _ = w.shape
    if draft.mode == "stt":
        tensor = w.transpose(1, 2, 3, 0)
        return [tensor.reshape(rows, -1) for rows in (cin, cin * kh, w.size // cout)]
    if cross:
        x = cross_slices(w)
        return [x.reshape(-1, cin).T, x.transpose(1, 0, 2).reshape(cout, -1)]
    return [w.transpose(1, 0, 2, 3).reshape(cin, -1), w.reshape(cout, -1)]


def _by_energy(energy: float, info: LayerInfo, draft: TTLayer) -> TTLayer:
    """Smallest ranks whose discarded squared singular values, summed over the unfoldings, are at
    most 1 − energy of the whole: the squared error of the SVD-based fit cannot exceed that sum."""
    matrices = _unfoldings(info, draft, cross=True)
    ranks = []
    for matrix in matrices:
        squares = singular_values(matrix) ** 2
        allowed = (1.0 - energy) * squares.sum() / len(matrices)
        tails = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        ranks.append(max(int(np.argmax(tails <= allowed)), 1))
    if draft.kind == "conv2d" and draft.mode == "ptt":
        ranks = [ranks[0], ranks[1], ranks[1]]
    elif draft.kind == "conv2d" and draft.mode == "htt":
        ranks = [max(ranks)] * 3
    return _with_rank(info, draft, ranks)


def _by_vbmf(info: LayerInfo, draft: TTLayer) -> tuple[TTLayer, str]:
    if draft.kind == "linear":
        found = [evbmf_rank(m) for m in _unfoldings(info, draft, cross=False)]
    else:
        # One rank for all three cuts, from the channel unfoldings of the whole weight.
        both = _unfoldings(info, replace(draft, mode="ptt", timesteps=None), cross=False)
        found = [max(evbmf_rank(m) for m in both)] * 3
    layer = _with_rank(info, draft, [max(r, 1) for r in found])
    if found and max(found) == 0:
        return layer, "EVBMF finds only noise (untrained weights?), rank 1 taken"
    return layer, ""
