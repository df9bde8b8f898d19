"""Which input a network takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ttsnn.errors import ModelImportError, first_line
from ttsnn.sources.dataset import dataset_of
from ttsnn.sources.source import InputShape, ModelOptions

_GUESSED_SIZES = (32, 28, 48, 64, 128, 224, 8, 16)


def input_of(name: str, module: Any, options: ModelOptions) -> InputShape:
    """The input that the network takes: said by the user, by its attributes, or found by trial."""
    from ttsnn.models.time_axis import timesteps_of

    _set_time(name, module, options)
    if options.input_shape is not None:
        error = _failure(module, options.input_shape)
        if error is not None:
            raise ModelImportError(
                f"{name} does not run on input shape {list(options.input_shape.sized(1))}: {error}"
            )
        return options.input_shape
    declared = getattr(module, "input_shape", None)
    if declared is not None and not callable(declared):
        sizes = tuple(int(s) for s in declared)
        if options.image_size is not None and len(sizes) == 3:
            sizes = (sizes[0], options.image_size, options.image_size)
        time = timesteps_of(module)
        static = bool(getattr(module, "static_input", True)) or time is None
        shape = InputShape((0, *sizes), 0) if static else InputShape((time or 1, 0, *sizes), 1)
        error = _failure(module, shape)
        if error is None:
            return shape
        raise ModelImportError(
            f"{name} does not run on its own input shape {list(shape.sized(1))}: {error}; "
            "give --input-shape"
        )
    first_error = None
    for shape in _candidates(module, options):
        error = _failure(module, shape)
        if error is None:
            return shape
        first_error = first_error or f"{list(shape.sized(1))}: {error}"
    tried = f" (tried {first_error})" if first_error else ""
    raise ModelImportError(
        f"{name}: cannot find out which input it takes{tried}; give --input-shape, such as "
        "N,3,32,32 or 4,N,2,48,48"
    )


def _set_time(name: str, module: Any, options: ModelOptions) -> None:
    """Honour ``--timesteps`` on a network whose factory took none, where it has the attribute."""
    from ttsnn.models.time_axis import TIME_NAMES, timesteps_of

    if options.timesteps is None or timesteps_of(module) in (None, options.timesteps):
        return
    for part in module.modules():
        for attribute in TIME_NAMES:
            if isinstance(vars(part).get(attribute), int):
                setattr(part, attribute, options.timesteps)


def _candidates(module: Any, options: ModelOptions) -> Iterator[InputShape]:
    """Inputs worth trying, most likely first."""
    import torch
    from torch import nn

    from ttsnn.models.time_axis import timesteps_of

    time = options.timesteps or timesteps_of(module) or dataset_of(options).T
    first = next(
        (
            m
            for m in module.modules()
            if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
            or (isinstance(getattr(m, "g1", None), torch.Tensor) and m.g1.dim() == 2)
        ),
        None,
    )
    if first is None:
        return
    if isinstance(first, nn.Linear):
        samples: list[tuple[int, ...]] = [(first.in_features,)]
        side = round(first.in_features**0.5)
        if side * side == first.in_features:
            samples.append((1, side, side))
    else:
        channels = getattr(first, "in_channels", None) or int(first.g1.shape[1])
        dims = 1 if isinstance(first, nn.Conv1d) else 3 if isinstance(first, nn.Conv3d) else 2
        if options.image_size is not None:
            sizes: tuple[int, ...] = (options.image_size,)
        elif options.dataset is not None:
            sizes = (dataset_of(options).image_size,)
        else:
            sizes = _GUESSED_SIZES
        samples = [(channels, *(size,) * dims) for size in sizes]
    for sample in samples:
        yield InputShape((0, *sample), 0)
        yield InputShape((time, 0, *sample), 1)


def _failure(module: Any, shape: InputShape) -> str | None:
    """Why the network does not run on this shape; None where it does.

    Runs a copy, so that networks that keep state between calls stay untouched, on a batch size
    that differs from every other size, so that a batch taken for another axis is noticed.
    """
    import copy

    import torch

    batch = next(b for b in range(2, 9) if b not in shape.shape)
    parameter = next((p for p in module.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    try:
        probe = copy.deepcopy(module)
    except Exception:
        probe = module  # e.g. state left from an earlier run, which cannot be copied
    sample = torch.zeros(shape.sized(batch), dtype=dtype)
    try:
        # Shapes alone, without arithmetic; networks that look at values don't run like that.
        with torch.no_grad():
            out = copy.deepcopy(probe).to("meta")(sample.to("meta"))
    except Exception:
        try:
            with torch.no_grad():
                out = probe(sample)
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"
    while isinstance(out, (tuple, list)) and out:
        out = out[0]
    if not isinstance(out, torch.Tensor):
        return f"it returns {type(out).__name__}, not a tensor"
    if batch not in out.shape[:2]:
        return f"its output {list(out.shape)} has no axis for the batch of {batch}"
    return None
