"""The networks and datasets that have names, and how a network is made ready for inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ttsnn.errors import DataError, ModelImportError
from ttsnn.models.lif import LIF
from ttsnn.models.resnet import ms_resnet18, ms_resnet34
from ttsnn.models.time_axis import SpikingNetwork
from ttsnn.models.vgg import spiking_mlp, spiking_vgg9, spiking_vgg11

__all__ = [
    "DATASETS",
    "ZOO",
    "DatasetSpec",
    "calibrate",
    "create",
    "dataset_spec",
    "example_input",
    "spikes_of",
]


@dataclass(frozen=True)
class DatasetSpec:
    """What a dataset's samples look like.

    Attributes:
        name: key in :data:`DATASETS`.
        channels: channels of an image; 2 polarities of event frames.
        image_size: height and width in pixels.
        classes: number of classes.
        T: usual number of timesteps.
        static: images [C, H, W], or event frames [T, C, H, W].
    """

    name: str
    channels: int
    image_size: int
    classes: int
    T: int
    static: bool


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec("digits", 1, 8, 10, 4, True),
        DatasetSpec("moving_digits", 2, 16, 10, 6, False),
        DatasetSpec("cifar10", 3, 32, 10, 4, True),
        DatasetSpec("cifar100", 3, 32, 100, 4, True),
        DatasetSpec("ncaltech101", 2, 48, 101, 6, False),
    )
}

ZOO: dict[str, Callable[..., SpikingNetwork]] = {
    "ms_resnet18": ms_resnet18,
    "ms_resnet34": ms_resnet34,
    "spiking_vgg9": spiking_vgg9,
    "spiking_vgg11": spiking_vgg11,
    "spiking_mlp": spiking_mlp,
}


def dataset_spec(name: str) -> DatasetSpec:
    """The dataset of that name.

    Raises:
        DataError: there is none.
    """
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}: use one of {', '.join(DATASETS)}")
    return DATASETS[name]


def create(
    name: str,
    dataset: str = "cifar10",
    *,
    T: int | None = None,
    image_size: int | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    calibrated: bool = True,
    **kwargs: Any,
) -> SpikingNetwork:
    """A network of the zoo in eval mode, with seeded random weights.

    Args:
        name: key of :data:`ZOO`.
        dataset: key of :data:`DATASETS`; says shapes, classes and T.
        T, image_size, in_channels, num_classes: override what the dataset says.
        seed: of the weights and of the calibration's input. PyTorch's global generator is left
            as it was.
        calibrated: set the batch-norm statistics from random input, so that all neurons fire at
            a sane rate. False is faster, for counting.
        kwargs: the network's own options (``downsample``, ``lif``, ``hidden`` …).

    Raises:
        ModelImportError: unknown name or option.
        DataError: unknown dataset.
    """
    if name not in ZOO:
        raise ModelImportError(f"unknown model {name!r}: use one of {', '.join(sorted(ZOO))}")
    spec = dataset_spec(dataset)
    size = spec.image_size if image_size is None else image_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = ZOO[name](
                (spec.channels if in_channels is None else in_channels, size, size),
                spec.classes if num_classes is None else num_classes,
                spec.T if T is None else T,
                spec.static,
                **kwargs,
            )
        except TypeError as error:
            raise ModelImportError(f"{name}: {error}") from error
    model.eval()
    if calibrated:
        batch = 8 if size <= 32 else 4
        dtype = next(model.parameters()).dtype
        calibrate(model, example_input(model, batch, dtype, seed))
    return model


def example_input(
    model: Any,
    batch: int = 1,
    dtype: torch.dtype | str = torch.float32,
    seed: int = 0,
) -> Tensor:
    """Seeded random input of a network that has ``T``, ``input_shape`` and ``static_input``.

    The same values in every dtype, up to rounding.

    Returns:
        Standard normal images [N, C, H, W], or event frames [T, N, C, H, W] of 0 and 1 with
        density 0.2.
    """
    missing = [a for a in ("T", "input_shape", "static_input") if not hasattr(model, a)]
    if missing:
        raise ModelImportError(
            f"{type(model).__name__} has no attribute {', '.join(missing)}, so its input is not "
            "known; give an example input"
        )
    if isinstance(dtype, str):
        named = getattr(torch, dtype, None)
        if not isinstance(named, torch.dtype):
            raise DataError(f"unknown dtype {dtype!r}: use float32 or float64")
        dtype = named
    generator = torch.Generator().manual_seed(seed)
    if model.static_input:
        x = torch.randn((batch, *model.input_shape), generator=generator, dtype=torch.float64)
    else:
        x = torch.rand((model.T, batch, *model.input_shape), generator=generator) < 0.2
    return x.to(dtype)


def calibrate(model: nn.Module, x: Tensor) -> nn.Module:
    """Set every batch norm's running statistics to those of ``x``, in place.

    Networks with random weights, or with layers just replaced by fitted cores, otherwise carry
    statistics that do not belong to them, and their neurons fall silent or fire always.

    Args:
        model: any network; stays in the mode (train or eval) that it was in.
        x: one batch of its input.

    Returns:
        The network.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [m.momentum for m in norms]
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over calls, here of one
        norm.training = True
    try:
        with torch.no_grad():
            model(x)
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def spikes_of(model: nn.Module, x: Tensor) -> tuple[Any, list[tuple[str, Tensor]]]:
    """Run a network and record what every :class:`~ttsnn.models.LIF` fired.

    Returns:
        The network's output, and (name of the neuron's module, spikes [T, N, …]) in the order
        of execution.
    """
    record: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            record.append((name, output[0] if isinstance(output, tuple) else output))

        return hook

    hooks = [
        m.register_forward_hook(keep(name))
        for name, m in model.named_modules()
        if isinstance(m, LIF)
    ]
    try:
        with torch.no_grad():
            logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, record
