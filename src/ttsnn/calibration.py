"""Calibration: how often the inputs of a network's layers spike, on data like that of its use.

The CPU target makes layers event-driven by it (``docs/cpu-target.md``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tvm

from ttsnn.errors import DataError, TargetError
from ttsnn.specs import TensorSpec

__all__ = ["EXAMPLE", "Calibration", "check_calibration", "firing_rates"]

EXAMPLE = "example"
"""Word for the example input."""

Calibration = Any
"""Inputs of a network: an array or tensor, a sequence of them, or a mapping by name; any number
of samples."""


def check_calibration(target: str, data: Any) -> None:
    """Refuse what cannot be done, before the network is imported.

    Raises:
        TargetError: the target has no use for firing rates.
        DataError: a text other than ``"example"``.
    """
    from ttsnn.targets import get_target

    chosen = get_target(target)
    if not chosen.takes_firing_rates:
        raise TargetError(
            f"target {chosen.name} chooses nothing by calibration; leave it out, or compile for cpu"
        )
    if isinstance(data, str) and data != EXAMPLE:
        raise DataError(f"calibration: {data!r}: give arrays, or {EXAMPLE!r} for the example input")


def firing_rates(mod: tvm.IRModule, data: Calibration, example: Any = None) -> dict[str, float]:
    """Share of ones in the input of each layer that reads spikes.

    The program is compiled for this machine's CPU, whatever it will be compiled for in the end.

    Args:
        mod: a program (imported, decomposed).
        data: inputs; samples are taken in pieces of the program's batch, the last one filled up
            with the first samples. Or ``"example"``.
        example: what ``"example"`` means.

    Raises:
        DataError: number, shape or values of the inputs are wrong, or there is no example.
    """
    from ttsnn.driver import build
    from ttsnn.passes.layers.expose_rates import RATE

    if isinstance(data, str):
        if example is None:
            raise DataError(
                f"calibration: {data!r}: a file has no example input; give arrays of typical inputs"
            )
        data = example
    meta = json.loads(str(mod.attrs["ttsnn.meta"]))
    state = {s["input"] for s in meta.get("state", ())}
    specs = [TensorSpec.from_json(s) for s in meta["inputs"] if s["name"] not in state]
    pieces = list(_pieces(data, specs, meta.get("batch_axis")))
    net = build(mod, "cpu", database=False, expose_rates=True)
    names = [spec.name for spec in net.outputs]
    found: dict[str, list[float]] = defaultdict(list)
    for piece in pieces:
        net.reset()
        results = net(*piece)
        for name, value in zip(names, results if isinstance(results, tuple) else (results,)):
            if name.startswith(RATE):
                found[name.removeprefix(RATE)].append(float(value))
    return {name: float(np.mean(rates)) for name, rates in found.items()}


def _pieces(
    data: Calibration, specs: Sequence[TensorSpec], axis: int | None
) -> Iterator[list[np.ndarray]]:
    """Inputs of the batch that the network takes; ``axis``: of the batch, None: not known."""
    arrays = [_array(v, s) for v, s in zip(_values(data, specs), specs, strict=True)]
    for array, spec in zip(arrays, specs):
        _check_shape(array, spec, axis)
    if axis is None or isinstance(specs[0].shape[axis], str):
        yield arrays
        return
    counts, size = sorted({a.shape[axis] for a in arrays}), int(specs[0].shape[axis])
    if len(counts) > 1:
        raise DataError(f"calibration: inputs of {counts} samples; give as many of each")
    for start in range(0, counts[0], size):
        index = np.arange(start, start + size) % counts[0]
        yield [np.take(a, index, axis=axis) for a in arrays]


def _values(data: Calibration, specs: Sequence[TensorSpec]) -> list[Any]:
    if isinstance(data, Mapping):
        missing = [s.name for s in specs if s.name not in data]
        if missing:
            raise DataError(
                f"calibration: no {missing[0]!r} among {', '.join(map(str, data)) or 'nothing'}"
            )
        return [data[s.name] for s in specs]
    values = list(data) if isinstance(data, (tuple, list)) else [data]
    if len(values) != len(specs):
        names = ", ".join(s.name for s in specs)
        raise DataError(f"calibration: {len(values)} inputs for a network that takes {names}")
    return values


def _array(value: Any, spec: TensorSpec) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "buif":
        raise DataError(f"calibration: {spec.name} must hold numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"calibration: {spec.name} has values that are not finite")
    if 0 in array.shape:
        raise DataError(f"calibration: {spec.name} has no samples: shape {list(array.shape)}")
    return np.ascontiguousarray(array, dtype=spec.dtype)


def _check_shape(array: np.ndarray, spec: TensorSpec, axis: int | None) -> None:
    same = len(array.shape) == len(spec.shape) and all(
        isinstance(wanted, str) or given == wanted or i == axis
        for i, (given, wanted) in enumerate(zip(array.shape, spec.shape))
    )
    if not same:
        free = "" if axis is None else f", with any number of samples at axis {axis}"
        raise DataError(
            f"calibration: {spec.name} is {list(array.shape)}, the network takes "
            f"{list(spec.shape)}{free}"
        )
