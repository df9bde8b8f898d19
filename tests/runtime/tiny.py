"""Hand-written networks, small enough to compile in a test, with their NumPy meaning."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R

from ttsnn.artifact import Manifest, StateEntry, write_artifact
from ttsnn.specs import TensorSpec


@I.ir_module
class Dense:
    """y = max(x·w + b, 0) with a symbolic batch, and z = y + y."""

    @R.function
    def main(
        x: R.Tensor(("n", 6), "float32"),
        w: R.Tensor((6, 5), "float32"),
        b: R.Tensor((5,), "float32"),
    ):
        R.func_attr({"num_input": 1})
        with R.dataflow():
            y = R.nn.relu(R.add(R.matmul(x, w), b))
            z = R.add(y, y)
            R.output(y, z)
        return (y, z)


@I.ir_module
class Leaky:
    """v' = v/2 + x·w; returns (v' + 1, v')."""

    @R.function
    def main(
        x: R.Tensor(("n", 6), "float64"),
        v: R.Tensor(("n", 5), "float64"),
        w: R.Tensor((6, 5), "float64"),
    ):
        R.func_attr({"num_input": 2})
        with R.dataflow():
            h = R.add(R.multiply(v, R.const(0.5, "float64")), R.matmul(x, w))
            y = R.add(h, R.const(1.0, "float64"))
            R.output(h, y)
        return (y, h)


TARGET = {"name": "cpu", "llvm": "llvm", "arch": platform.machine(), "features": []}


def manifest(**changes) -> Manifest:
    """The manifest of ``Dense``."""
    fields = {
        "model": "dense",
        "target": TARGET,
        "versions": {"ttsnn": "0.1.0", "tvm": tvm.__version__},
        "inputs": (TensorSpec("x", ("n", 6), "float32"),),
        "outputs": (TensorSpec("y", ("n", 5), "float32"), TensorSpec("z", ("n", 5), "float32")),
        "params": ("w", "b"),
    }
    return Manifest(**{**fields, **changes})


def leaky_manifest() -> Manifest:
    """The manifest of ``Leaky``."""
    return manifest(
        model="leaky",
        inputs=(TensorSpec("x", ("n", 6), "float64"), TensorSpec("v", ("n", 5), "float64")),
        outputs=(TensorSpec("y", ("n", 5), "float64"), TensorSpec("v", ("n", 5), "float64")),
        params=("w",),
        state=(StateEntry("v", 1),),
    )


def dense_params(seed: int = 0) -> dict[str, np.ndarray]:
    """Random parameters of ``Dense``."""
    rng = np.random.default_rng(seed)
    return {
        "w": rng.standard_normal((6, 5)).astype("float32"),
        "b": rng.standard_normal(5).astype("float32"),
    }


def build(module: tvm.IRModule, folder: Path) -> bytes:
    """Compile to a shared library."""
    executable = relax.build(module, "llvm")
    path = folder / "lib.so"
    executable.export_library(str(path))
    return path.read_bytes()


def write(folder: Path, library: bytes, **changes) -> Path:
    """An artifact of ``Dense`` in ``folder``."""
    path = folder / "net.ttsnn"
    write_artifact(path, manifest(**changes), dense_params(), library)
    return path
