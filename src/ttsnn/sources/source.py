"""A resolved network, and what a user says about one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.errors import DataError, ModelImportError
from ttsnn.sources.same_plan import check_same

if TYPE_CHECKING:
    import torch

    from ttsnn.plans import TTPlan


@dataclass(frozen=True)
class InputShape:
    """Shape of one network input; the batch size is a hole at ``batch_axis``.

    Attributes:
        shape: sizes, with 0 standing for the batch.
        batch_axis: 0 for [N, C, H, W], 1 for [T, N, C, H, W].
    """

    shape: tuple[int, ...]
    batch_axis: int

    def sized(self, batch: int) -> tuple[int, ...]:
        """The shape with this batch size."""
        return (*self.shape[: self.batch_axis], batch, *self.shape[self.batch_axis + 1 :])


@dataclass(frozen=True)
class ModelOptions:
    """What the user said about the network beyond its name. None: not said."""

    dataset: str | None = None
    timesteps: int | None = None
    image_size: int | None = None
    in_channels: int | None = None
    num_classes: int | None = None
    input_shape: InputShape | None = None
    weights: str | os.PathLike | None = None
    """A state_dict file, or a run of ``ttsnn train``: its folder or its checkpoint.json."""
    plan: Any = None
    """Of cores in ``weights``, where the file does not say it: a rule, a plan file or a plan."""
    mode: str = "ptt"
    seed: int = 0
    calibrated: bool = True
    """Zoo networks without weights: make batch-norm statistics from random input, which runs
    the network. Whoever only counts, or makes statistics itself, does without."""


@dataclass(frozen=True)
class ModelSource:
    """A resolved network.

    Attributes:
        name: for reports, and for plans that are made for one network (``paper``).
        kind: ``"module"``, ``"pt2"``, ``"onnx"`` or ``"ttsnn"``.
        module: the PyTorch network in eval mode, for kind ``"module"``.
        path: the file, for the other kinds.
        input: the input that it takes; None for files, which say it themselves, and where the
            caller has an example.
        options: what it was resolved with.
        trained: whether weights were given (a file, or a module of the caller's own).
        plan: of the tensor trains that ``module`` has, where the weights brought their cores.
    """

    name: str
    kind: str
    module: Any = None
    path: Path | None = None
    input: InputShape | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    trained: bool = False
    plan: TTPlan | None = None

    def plan_to_apply(self, plan: Any, mode: str) -> Any:
        """A plan that the caller asks for, or None where the network has its cores already.

        Raises:
            PlanError: it has those of another plan.
        """
        if self.plan is None or plan is None:
            return plan
        check_same(self.plan, plan, mode, str(self.options.weights))
        return None

    def example(self, batch: int = 1, dtype: str = "float32", seed: int = 0) -> torch.Tensor:
        """A seeded random input of this network, as :func:`ttsnn.models.example_input` makes it.

        Static images are standard normal. Inputs with a time axis are event frames, 0 or 1.
        """
        import torch

        if self.input is None:
            raise ModelImportError(
                f"{self.path or self.name}: a {self.kind} file carries its own input; it needs no "
                "example"
            )
        generator = torch.Generator().manual_seed(seed)
        shape = self.input.sized(batch)
        if self.input.batch_axis == 1:
            x = (torch.rand(shape, generator=generator) < 0.2).to(torch.float64)
        else:
            x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.to(getattr(torch, dtype))


def parse_input_shape(text: str) -> InputShape:
    """Read ``--input-shape``.

    ``N,3,32,32`` and ``4,N,2,48,48`` name the batch. Without an N: 1 or 3 sizes are one sample
    [C, H, W], 4 sizes are one sample with time [T, C, H, W], 5 are [T, N, C, H, W].
    """
    words = [w.strip() for w in text.replace("x", ",").split(",") if w.strip()]
    try:
        sizes = [0 if w.upper() == "N" else int(w) for w in words]
    except ValueError:
        sizes = []
    named = [i for i, w in enumerate(words) if w.upper() == "N"]
    bad = not sizes or len(named) > 1 or any(s <= 0 and i not in named for i, s in enumerate(sizes))
    if not bad and named:
        return InputShape(tuple(sizes), named[0])
    if not bad and len(sizes) in (1, 3):
        return InputShape((0, *sizes), 0)
    if not bad and len(sizes) == 4:
        return InputShape((sizes[0], 0, *sizes[1:]), 1)
    if not bad and len(sizes) == 5:
        return InputShape((sizes[0], 0, *sizes[2:]), 1)
    raise DataError(
        f"input shape {text!r} is not understood: give sizes with N for the batch, "
        "such as N,3,32,32 or 4,N,2,48,48"
    )
