"""What a MODEL argument means: zoo names, factories, modules and files.

Everything that takes a network (``ttsnn.compile``, ``ttsnn compare`` …) resolves it here to a
:class:`ModelSource`, which knows the network's name, where it comes from, and which input it
takes. PyTorch is imported only where a network has to be built.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.errors import ArtifactError, DataError, ModelImportError, PlanError, first_line

if TYPE_CHECKING:
    import torch

    from ttsnn.plans import TTPlan

__all__ = ["InputShape", "ModelOptions", "ModelSource", "parse_input_shape", "resolve"]

_FILE_KINDS = {".pt2": "pt2", ".onnx": "onnx", ".ttsnn": "ttsnn"}
_GUESSED_SIZES = (32, 28, 48, 64, 128, 224, 8, 16)
_DEFAULT_DATASET = "cifar10"


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
        _check_same(self.plan, plan, mode, str(self.options.weights))
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


def resolve(model: Any, options: ModelOptions | None = None, *, probe: bool = True) -> ModelSource:
    """Find the network that ``model`` means.

    Args:
        model: a name of the zoo, ``"package.module:factory"`` (the current folder is on the
            path; a factory, a class or a module), a path ending in .pt2, .onnx or .ttsnn, a
            ``torch.nn.Module``, or an already resolved source.
        options: dataset, shapes and weights, where the network does not say them itself.
        probe: find out which input it takes (by running it, if need be); False where the caller
            has an example, and the source then has no ``input``.

    Raises:
        ModelImportError: no such network, or it cannot be built or run.
        DataError: options that are wrong in themselves.
    """
    options = options or ModelOptions()
    if isinstance(model, ModelSource):
        return model
    if isinstance(model, (str, os.PathLike)):
        text = os.fspath(model)
        kind = _FILE_KINDS.get(Path(text).suffix.lower())
        if kind is not None:
            return _from_file(Path(text), kind, options)
        if ":" in text:
            return _from_factory(text, options, probe)
        return _from_zoo(text, options, probe)
    import torch

    if isinstance(model, torch.nn.Module):
        return _finish(type(model).__name__, model, options, trained=True, probe=probe)
    raise ModelImportError(
        f"a network must be a torch.nn.Module, a zoo name, package.module:factory or a file, "
        f"got {type(model).__name__}"
    )


def _from_file(path: Path, kind: str, options: ModelOptions) -> ModelSource:
    if not path.is_file():
        error = ArtifactError if kind == "ttsnn" else ModelImportError
        raise error(f"{path}: no such file")
    if options.weights is not None:
        raise ModelImportError(f"{path}: the file has its own weights; leave --weights out")
    return ModelSource(path.stem, kind, path=path, options=options, trained=True)


def _from_zoo(name: str, options: ModelOptions, probe: bool) -> ModelSource:
    from ttsnn import models

    if name not in models.ZOO:
        raise ModelImportError(
            f"unknown model {name!r}: expected one of {', '.join(sorted(models.ZOO))}, "
            "package.module:factory, or a .pt2, .onnx or .ttsnn file"
        )
    module = models.create(
        name,
        options.dataset or _DEFAULT_DATASET,
        T=options.timesteps,
        image_size=options.image_size,
        in_channels=options.in_channels,
        num_classes=options.num_classes,
        seed=options.seed,
        calibrated=options.calibrated and options.weights is None,
    )
    if options.dataset is None:
        options = replace(options, dataset=_DEFAULT_DATASET)
    return _finish(name, module, options, trained=False, probe=probe)


def _from_factory(text: str, options: ModelOptions, probe: bool) -> ModelSource:
    module_name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelImportError(f"{text}: cannot import {module_name!r}: {error}") from error
    except Exception as error:
        raise ModelImportError(
            f"{text}: importing {module_name!r} raised {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ModelImportError(f"{text}: {module_name} has no {attribute!r}")
        found = getattr(found, part)

    import torch

    if not isinstance(found, torch.nn.Module):
        if not callable(found):
            raise ModelImportError(f"{text}: neither a torch.nn.Module nor callable")
        kwargs = _factory_arguments(found, options)
        torch.manual_seed(options.seed)
        try:
            found = found(**kwargs)
        except Exception as error:
            shown = ", ".join(f"{k}={v!r}" for k, v in kwargs.items())
            raise ModelImportError(
                f"{text}({shown}) raised {type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, torch.nn.Module):
        raise ModelImportError(
            f"{text} returned {type(found).__name__}; it must return a torch.nn.Module"
        )
    return _finish(attribute.rpartition(".")[2], found, options, trained=False, probe=probe)


def _factory_arguments(factory: Any, options: ModelOptions) -> dict[str, Any]:
    """What to call a factory with: what the user said, and what it requires."""
    from ttsnn.models.time_axis import TIME_NAMES

    spec = _dataset(options)
    said = {
        "T": options.timesteps,
        "image_size": options.image_size,
        "in_channels": options.in_channels,
        "num_classes": options.num_classes,
    }
    default = {
        "T": spec.T,
        "image_size": spec.image_size,
        "in_channels": spec.channels,
        "num_classes": spec.classes,
    }
    aliases = {
        **dict.fromkeys(TIME_NAMES, "T"),
        **dict.fromkeys(("image_size", "img_size", "input_size", "resolution"), "image_size"),
        **dict.fromkeys(("in_channels", "in_chans", "input_channels", "channels"), "in_channels"),
        **dict.fromkeys(("num_classes", "n_classes", "num_class", "classes"), "num_classes"),
    }
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    out: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        required = parameter.default is parameter.empty
        key = aliases.get(name)
        value: Any = None
        if key is not None:
            value = said[key]
            if value is None and (required or options.dataset is not None):
                value = default[key]
        elif name == "dataset":
            value = options.dataset or (_DEFAULT_DATASET if required else None)
        elif name == "seed":
            value = options.seed
        if value is not None:
            out[name] = value
    return out


def _dataset(options: ModelOptions) -> Any:
    from ttsnn.models import DATASETS

    name = options.dataset or _DEFAULT_DATASET
    if name not in DATASETS:
        raise DataError(f"unknown dataset {name!r}: expected one of {', '.join(DATASETS)}")
    return DATASETS[name]


def _finish(
    name: str, module: Any, options: ModelOptions, *, trained: bool, probe: bool
) -> ModelSource:
    """Load weights, set eval mode, find the input."""
    module, plan = module.eval(), None
    if options.weights is not None:
        module, plan = _with_weights(name, module, options)
        trained = True
    shape = _input_of(name, module, options) if probe else None
    return ModelSource(name, "module", module, None, shape, options, trained, plan)


def _with_weights(name: str, module: Any, options: ModelOptions) -> tuple[Any, TTPlan | None]:
    """The network with the weights of a file or a run, in their dtype; tensor trains where those
    are cores.

    Raises:
        ModelImportError: they do not fit; cores of a plan that nobody says.
        PlanError: cores of another plan than the one that is asked for.
    """
    import torch

    from ttsnn.models import apply_plan
    from ttsnn.plans import TTPlan
    from ttsnn.weights import load_state, read_weights

    assert options.weights is not None
    found = read_weights(options.weights)
    plan = None if found.plan is None else TTPlan.from_json(found.plan)
    if plan is not None and options.plan is not None:
        _check_same(plan, options.plan, options.mode, str(found.path))
    elif plan is None and found.cores and not any(k in module.state_dict() for k in found.cores):
        if options.plan is None:
            raise ModelImportError(
                f"{found.path}: holds tensor-train cores ({found.cores[0]} …); give the plan that "
                "they were trained with (--plan, --mode)"
            )
        plan = _made(name, module, options)
    if plan is not None:
        module = apply_plan(module, plan, init="fresh")
    floats = {v.dtype for v in found.state.values() if v.is_floating_point()}
    if floats == {torch.float64}:
        module = module.to(torch.float64)  # rather than round them
    load_state(module, found.state, found.path)
    return module, plan


def _made(name: str, module: Any, options: ModelOptions) -> TTPlan:
    """The plan of ``options`` for a dense network."""
    from ttsnn.driver import import_source, make_plan

    bare = replace(options, weights=None, plan=None)
    source = ModelSource(name, "module", module, None, _input_of(name, module, bare), bare)
    return make_plan(import_source(source), options.plan, options.mode)


def _check_same(plan: TTPlan, wanted: Any, mode: str, path: str) -> None:
    """Refuse cores of another plan than the one that is asked for."""
    from ttsnn.plans import TTPlan

    if isinstance(wanted, (str, os.PathLike)) and Path(wanted).suffix == ".json":
        wanted = TTPlan.load(wanted)
    modes = sorted({la.mode for la in plan.layers.values() if la.kind == "conv2d"})
    if isinstance(wanted, TTPlan):
        same, text = wanted.layers == plan.layers, f"the given one ({wanted.rule})"
    else:
        same, text = str(wanted) == plan.rule and modes in ([], [mode]), f"{wanted}, {mode}"
    if not same:
        raise PlanError(
            f"{path}: its cores are of the plan {plan.rule}, {'/'.join(modes) or 'tt'}, not of "
            f"{text}; leave the plan out, or give the one that they were trained with"
        )


def _input_of(name: str, module: Any, options: ModelOptions) -> InputShape:
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

    time = options.timesteps or timesteps_of(module) or _dataset(options).T
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
            sizes = (_dataset(options).image_size,)
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
