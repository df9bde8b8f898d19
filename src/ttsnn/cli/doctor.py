"""``ttsnn doctor``: is this installation able to do its work?"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsnn.cli import _common

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Check", "add_parser", "checks", "run"]

_REQUIRED = ("numpy", "scipy", "networkx", "safetensors", "rich", "torch", "scikit-learn")
_OPTIONAL = {
    "onnx": "export to and import from ONNX",
    "onnxruntime": "a peer of compare",
    "matplotlib": "plots",
    "xgboost-cpu": "tune: its cost model",
    "cloudpickle": "tune: its workers",
    "psutil": "tune: its workers",
    "tornado": "tune: the tracker of other devices",
}


@dataclass(frozen=True)
class Check:
    """One line: ``state`` is ``"ok"``, ``"missing"`` (optional) or ``"failed"``."""

    name: str
    state: str
    detail: str


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    _common.command(
        subparsers,
        "doctor",
        "Check versions, the CPU, the compiler, optional packages, and that a small network "
        "compiles here and runs in a process with TVM's runtime library alone. Exit code 1 where "
        "a check failed.",
        "ttsnn doctor",
    )


def run(args: argparse.Namespace) -> int:
    """Run all checks."""
    results = checks()
    failed = [c.name for c in results if c.state == "failed"]
    data = {"ok": not failed, "failed": failed, "checks": [asdict(c) for c in results]}

    def show(console: Console) -> None:
        marks = {"ok": "[green]ok[/green]", "missing": "[yellow]—[/yellow]"}
        for check in results:
            mark = marks.get(check.state, "[bold red]failed[/bold red]")
            console.print(f"{mark:24} {check.name:22} {check.detail}")

    _common.emit(args, data, show)
    return 1 if failed else 0


def checks() -> list[Check]:
    """All checks, in the order that they are shown."""
    return [
        *_versions(),
        _ffi_pin(),
        *_optional(),
        _cpu(),
        _linker(),
        *_end_to_end(),
    ]


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versions() -> list[Check]:
    from ttsnn import __version__

    out = [Check("ttsnn", "ok", __version__), Check("python", "ok", platform.python_version())]
    for package in ("apache-tvm", *_REQUIRED):
        found = _installed(package)
        out.append(Check(package, "ok" if found else "failed", found or "not installed"))
    return out


def _ffi_pin() -> Check:
    found = _installed("apache-tvm-ffi")
    if found is None:
        return Check("apache-tvm-ffi", "failed", "not installed")
    if found.startswith("0.1.14."):
        return Check("apache-tvm-ffi", "ok", found)
    return Check(
        "apache-tvm-ffi",
        "failed",
        f"{found}: with 0.1.15 and newer, saving modules as JSON and all of MetaSchedule "
        "(tuning) crash; pip install apache-tvm-ffi==0.1.14.post1",
    )


def _optional() -> list[Check]:
    out = []
    for package, use in _OPTIONAL.items():
        found = _installed(package)
        detail = found or f"not installed: {use}; pip install 'ttsnn[onnx,plots,tune]'"
        out.append(Check(package, "ok" if found else "missing", detail))
    return out


def _cpu() -> Check:
    from ttsnn.cpus import available_cpus
    from ttsnn.runtime.cpu import cpu_features, cpu_model
    from ttsnn.runtime.threads import default_threads

    features = cpu_features() or frozenset()
    vectors = next(
        (
            v
            for f, v in (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("asimd", "NEON"))
            if f in features
        ),
        "no wide vectors",
    )
    detail = (
        f"{cpu_model()}, {vectors}, {available_cpus()} CPUs for this process, "
        f"{default_threads()} threads by default"
    )
    return Check("cpu", "ok", detail)


def _linker() -> Check:
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        path = shutil.which(name)
        if path:
            return Check("linker", "ok", path)
    return Check(
        "linker",
        "failed",
        "no C++ compiler (g++ or clang++): networks compile and run, but cannot be saved; "
        "on Debian: apt-get install g++",
    )


_BUILD = """
import sys
import numpy as np, tvm
from tvm import relax
bb = relax.BlockBuilder()
x = relax.Var("x", relax.TensorType((4, 8), "float32"))
with bb.function("main", [x]):
    with bb.dataflow():
        y = bb.emit_output(bb.emit(relax.op.add(x, x)))
    bb.emit_func_output(y)
relax.build(bb.get(), "llvm").export_library(sys.argv[1])
"""

_RUN = """
import sys
import numpy as np, tvm, tvm.runtime.vm
vm = tvm.runtime.vm.VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())
x = np.arange(32, dtype="float32").reshape(4, 8)
assert (vm["main"](tvm.runtime.tensor(x)).numpy() == x + x).all()
assert "libtvm_compiler" not in open("/proc/self/maps").read(), "the compiler was loaded too"
"""


def _end_to_end() -> list[Check]:
    """Compile and link a small module; run it in a process without the compiler."""
    with tempfile.TemporaryDirectory(prefix="ttsnn-doctor-") as folder:
        library = str(Path(folder) / "lib.so")
        built = _python(_BUILD, library, {})
        out = [Check("compile and link", *built)]
        if built[0] == "ok":
            state = _python(_RUN, library, {"TVM_USE_RUNTIME_LIB": "1"})
            out.append(Check("runtime library alone", *state))
        return out


def _python(code: str, argument: str, environment: dict[str, str]) -> tuple[str, str]:
    """Run code in a new process → (state, detail)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, argument],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "failed", str(error)
    if done.returncode == 0:
        return "ok", "works"
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return "failed", lines[-1]
