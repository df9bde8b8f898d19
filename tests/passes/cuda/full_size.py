"""Networks of the zoo at their full sizes, to be compiled rather than run."""

from __future__ import annotations

import torch
import tvm

from ttsnn import models
from ttsnn.frontend import import_model
from ttsnn.passes import DecomposeToTT, layer_infos
from ttsnn.plans import make_plan


def full_size(name: str, mode: str | None, rank: int, batch: int) -> tvm.IRModule:
    """The program of a network, T = 4; dense where ``mode`` is None, else with fresh cores."""
    torch.manual_seed(0)
    model = models.create(name, "digits" if name == "spiking_mlp" else "cifar10", T=4).eval()
    mod = import_model(model, example=models.example_input(model, batch=batch))
    if mode is None:
        return mod
    return DecomposeToTT(make_plan(layer_infos(mod), f"rank={rank}", mode, T=4), init="fresh")(mod)
