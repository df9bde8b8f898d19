"""TT-ranks that TT-SNN published for its networks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from importlib import resources

from ttsnn.errors import PlanError
from ttsnn.plans.info import LayerInfo

__all__ = ["paper_networks", "paper_ranks"]


def paper_networks() -> list[dict]:
    """The published networks: name, dataset, channels and rank of each 3×3 convolution."""
    text = resources.files("ttsnn.plans").joinpath("paper_ranks.json").read_text("utf-8")
    return json.loads(text)["networks"]


def _shapes(network: dict) -> list[tuple[int, int, int, int]]:
    channels = [network["stem_channels"], *network["channels"]]
    return [(o, i, 3, 3) for i, o in itertools.pairwise(channels)]


def paper_ranks(convs: Sequence[LayerInfo]) -> list[int]:
    """The published rank of each convolution, in order.

    Args:
        convs: the network's decomposable convolutions: 3×3, without the stem.

    Raises:
        PlanError: no published network has convolutions of these shapes.
    """
    shapes = [tuple(c.weight_shape) for c in convs]
    for network in paper_networks():
        if shapes == _shapes(network):
            return network["ranks"]
    known = ", ".join(
        f"{n['name']} ({len(n['ranks'])} convolutions, {n['channels'][0]} to "
        f"{n['channels'][-1]} channels)"
        for n in paper_networks()
    )
    raise PlanError(
        f"rule 'paper' has ranks for {known}, not for this network with {len(convs)} "
        "decomposable convolutions; use another rule, e.g. 'ratio=8', 'rank=16' or 'vbmf'"
    )
