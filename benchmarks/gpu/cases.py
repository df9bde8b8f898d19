"""The cases: what one compiled program is, its files, its inputs, its importance."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

INDEX = "cases.json"
PRECISIONS = ("fp32", "tf32", "bf16")
LR, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Case:
    """One compiled program.

    Attributes:
        phase: ``"inference"`` or ``"train"``.
        network, dataset: of the zoo.
        mode: ``"dense"``, ``"stt"``, ``"ptt"``, ``"htt"``.
        batch, T: samples, timesteps.
        precision: as the target's option.
        graph: whether the kernels are replayed as a CUDA graph.
    """

    phase: str
    network: str
    mode: str
    batch: int
    T: int
    precision: str
    dataset: str
    graph: bool = False

    @property
    def name(self) -> str:
        """Of its files."""
        parts = [self.phase, self.network, self.mode, f"b{self.batch}", f"T{self.T}"]
        return "-".join([*parts, self.precision, *(["graph"] if self.graph else [])])

    def file(self, folder: Path, kind: str) -> Path:
        """``kind``: ``ttsnn``, ``spikes.ttsnn`` or ``check.safetensors``."""
        return folder / f"{self.name}.{kind}"

    @classmethod
    def of(cls, about: dict[str, Any]) -> Case:
        """The case that an entry of the index is of."""
        return cls(**{k: about[k] for k in cls.__dataclass_fields__ if k in about})


def grid(
    phases: str,
    networks: str,
    modes: str,
    batches: str,
    timesteps: str,
    precisions: str,
    dataset: str,
) -> list[Case]:
    """All combinations of lists like ``"1,32"``; at batch 1 inference with CUDA graphs too."""
    lists = (phases, networks, modes, batches, timesteps, precisions)
    cases = []
    for phase, network, mode, batch, T, precision in itertools.product(
        *(text.split(",") for text in lists)
    ):
        case = Case(phase, network, mode, int(batch), int(T), precision, dataset)
        if phase == "inference" and case.batch == 1:
            cases.append(Case(**asdict(case) | {"graph": True}))
        cases.append(case)
    return cases


def first_cases() -> list[Case]:
    """What a first, short use of a GPU should tell; small enough to travel in a bundle."""
    small = ("ms_resnet18", "ptt"), (4, "cifar10")
    large = ("ms_resnet34", "ptt"), (6, "ncaltech101")

    def case(phase: str, net: Any, batch: int, precision: str = "fp32", graph: bool = False):
        (network, mode), (T, dataset) = net
        return Case(phase, network, mode, batch, T, precision, dataset, graph)

    cases = [case("train", large, 128), case("train", small, 128)]
    cases += [case("inference", n, 1, graph=g) for n in (small, large) for g in (True, False)]
    cases += [case("train", small, 8), case("train", large, 32), case("train", large, 128, "tf32")]
    cases += [case("inference", n, 128) for n in (small, large)]
    cases += [case("inference", small, 128, p) for p in ("tf32", "bf16")]
    return cases


def importance(case: Case) -> int:
    """What to sort cases by, the most important first.

    The published claim's training step (PTT, MS-ResNet34, batch 128), the latency of PTT networks
    with CUDA graphs, the rest of PTT in float32, PTT in other precisions, other modes.
    """
    if case.mode != "ptt":
        return 4
    if case.precision != "fp32":
        return 3
    if case.phase == "train" and case.network == "ms_resnet34" and case.batch == 128:
        return 0
    return 1 if case.phase == "inference" and case.batch == 1 and case.graph else 2


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The cases of a folder, the most important first.

    Raises:
        FileNotFoundError: there are none.
        ValueError: the index is damaged.
    """
    entries = json.loads((folder / INDEX).read_text())
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise ValueError("no list of cases")
    for entry in entries:
        Case.of(entry)
    return sorted(entries, key=lambda entry: importance(Case.of(entry)))


def dense_network(case: Case, *, calibrated: bool = True) -> torch.nn.Module:
    """The PyTorch network without tensor trains, random weights."""
    from ttsnn import models

    return models.create(case.network, case.dataset, T=case.T, calibrated=calibrated)


def twin(case: Case, plan: dict | None, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    """The PyTorch network that was compiled, with its weights."""
    from ttsnn import models
    from ttsnn.plans import TTPlan

    model = dense_network(case, calibrated=False)
    if plan is not None:
        model = models.apply_plan(model, TTPlan.from_json(plan), init="fresh")
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
    return model


def batch_of(case: Case, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The input, standard normal images or 0/1 frames of density 0.2, and labels.

    From NumPy's frozen generator: the same in every version.
    """
    rng = np.random.RandomState(0)
    if model.static_input:
        x = rng.standard_normal((case.batch, *model.input_shape))
    else:
        x = rng.random_sample((case.T, case.batch, *model.input_shape)) < 0.2
    return torch.from_numpy(x.astype(np.float32)), torch.arange(case.batch) % 10
