"""A network as a bundle: compiled, with an input and the results of this machine's CPU.

With it, where asked for, its training step: cross-entropy and SGD with momentum 0.9.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ttsnn.errors import ArtifactError, DeviceError
from ttsnn.runtime.bundle.write import BundledNet, check_folder, write_bundle
from ttsnn.runtime.rounding import moved_by_rounding

__all__ = ["write_network"]

_TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
# At least, on another device; in float32 what rounding does may be more, and is measured.
_OTHER_DEVICE = {"float64": 1e-6, "float32": 2e-2}
_LR, _MOMENTUM, _UPDATES = 0.1, 0.9, 2


def write_network(
    folder: str | os.PathLike,
    model: Any,
    *,
    target: str = "cpu",
    python: Sequence[str] = (),
    extra: Sequence[Path] = (),
    seed: int = 0,
    batch: int = 1,
    training: bool = False,
    **settings: Any,
) -> tuple[int, str]:
    """Bundle one network, see :mod:`ttsnn.runtime.bundle`.

    Args:
        folder: must not exist, or be empty.
        model: what :func:`ttsnn.compile` accepts, or a ``.ttsnn`` file that runs here.
        target: what it is compiled for; no GPU is needed.
        python: more Python versions.
        extra: further files and folders to take along.
        seed: of weights, fresh cores and the input.
        batch: samples of the stored input.
        training: take its training step along too, as ``NAME_step``.
        settings: of :func:`ttsnn.compile`.

    Returns:
        Size in bytes and the target's name.

    Raises:
        ArtifactError: it cannot be written; a file for a GPU that this machine does not have.
        ModelImportError: a training step of something that cannot be trained.
    """
    from ttsnn import driver
    from ttsnn.artifact import read_artifact
    from ttsnn.runtime.net import Net, load, load_library

    check_folder(Path(folder))
    for path in extra:
        if not path.exists():
            raise ArtifactError(f"{path}: no such file or folder to take along")
    if training and (str(model).endswith(".ttsnn") or settings.get("dynamic_batch")):
        raise ArtifactError(
            "bundle: a training step is compiled from the network itself, for one batch size: "
            "give a zoo name or package.module:factory, without --dynamic-batch"
        )
    with tempfile.TemporaryDirectory(prefix="ttsnn-") as temporary:
        if str(model).endswith(".ttsnn"):
            path = Path(str(model))
            try:
                net = reference = load(path)
            except DeviceError as error:
                raise ArtifactError(
                    f"{path}: no results to check a bundle by: {error}; export the network itself"
                ) from error
        else:
            path = Path(temporary) / "net.ttsnn"
            common = {"seed": seed, "batch": batch, **settings}
            net = reference = driver.compile(model, target=target, out=path, **common)
            if net.manifest.target["name"] != "cpu":
                other = Path(temporary) / "reference.ttsnn"
                reference = driver.compile(model, target="cpu", out=other, **common)
        inputs = _inputs(reference, batch, seed)

        def run(network: Net) -> list[np.ndarray]:
            results = network(*inputs)
            return list(results) if isinstance(results, tuple) else [results]

        outputs, dtype = run(reference), reference.outputs[0].dtype
        if net is reference:
            limits = [_TOLERANCE[dtype]] * len(outputs)
        else:
            kept = read_artifact(other)
            library = load_library(kept)

            def run_with(params: Mapping[str, np.ndarray]) -> list[np.ndarray]:
                return run(Net(library, kept.manifest, params))

            limits = _limits(run_with, kept.params, outputs, dtype)
        name = net.manifest.model
        nets = {name: BundledNet(path, inputs, outputs, limits)}
        if training:
            file = Path(temporary) / "step.ttsnn"
            nets[f"{name}_step"] = _step(file, model, name, target, seed, batch, **settings)
        size = write_bundle(folder, nets, python=python, extra=extra)
    return size, net.manifest.target["name"]


def _step(
    path: Path, model: Any, name: str, target: str, seed: int, batch: int, **settings: Any
) -> BundledNet:
    """Compile a training step for the target, to be checked by the CPU's.

    The second loss and logits come after an update, so a wrong gradient shows in them.
    """
    from ttsnn.passes.training import SGD, CrossEntropy
    from ttsnn.runtime.step_file import save_step
    from ttsnn.runtime.training.network import network_of, trained_names
    from ttsnn.runtime.training.step import TrainStep

    kept = {k: v for k, v in settings.items() if k in ("plan", "mode", "init", "dtype", "options")}
    network = network_of(model, seed=seed, **kept)
    x = network.source.example(batch, settings.get("dtype") or "float32", seed)
    program = network.program(x)
    trained = trained_names(network.module, program)

    def compiled(where: str) -> TrainStep:
        return TrainStep(
            program, CrossEntropy(), SGD(momentum=_MOMENTUM), params=trained, target=where
        )

    step = compiled(target)
    save_step(step, path, model=name)
    reference = step if step.target.name == "cpu" else compiled("cpu")
    labels = np.random.default_rng(seed).integers(0, step.logits.shape[-1], batch)
    dtype = step.logits.dtype

    def run(weights: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        state, results = reference.state(model=weights), list[np.ndarray]()
        for _ in range(_UPDATES):
            state, told = reference(state, x, labels, _LR)
            results += [np.asarray(told.loss, dtype), told.logits]
        return results

    results = run(reference.initial)
    if reference is step:
        limits = [_TOLERANCE[dtype]] * len(results)
    else:
        limits = _limits(run, reference.initial, results, dtype)
    return BundledNet(path, [x.numpy(), labels, np.asarray(_LR)], results, limits)


def _limits(
    run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]],
    weights: Mapping[str, np.ndarray],
    results: list[np.ndarray],
    dtype: str,
) -> list[float]:
    """Tolerance of each result on another device."""
    least = _OTHER_DEVICE[dtype]
    if dtype == "float64":  # no spike flips
        return [least] * len(results)
    return [max(least, moved) for moved in moved_by_rounding(run, weights, results)]


def _inputs(net: Any, batch: int, seed: int) -> list[np.ndarray]:
    """Standard normal images, 0/1 frames of density 0.2."""
    rng = np.random.default_rng(seed)
    out = []
    for spec in net.inputs:
        shape = [batch if isinstance(d, str) else d for d in spec.shape]
        value = rng.random(shape) < 0.2 if len(shape) == 5 else rng.standard_normal(shape)
        out.append(np.asarray(value).astype(spec.dtype))
    return out
