"""Which instructions this machine's CPU has, and which ones compiled code needs.

Names of features are those of Linux' /proc/cpuinfo, so that a process with nothing but TVM's
runtime library can check them.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttsnn.errors import ArtifactError

__all__ = ["check_cpu", "cpu_features", "cpu_model", "from_llvm"]

# LLVM's name → the kernel's name; only what changes the code that LLVM emits for our kernels
_FROM_LLVM = {
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "avx": "avx",
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "neon": "asimd",
    "fullfp16": "asimdhp",
    "sve": "sve",
    "sve2": "sve2",
}


def from_llvm(features: Mapping[str, Any] | list[str]) -> list[str]:
    """Features that LLVM compiles for, in the kernel's names, sorted; others are left out."""
    return sorted({_FROM_LLVM[f] for f in features if f in _FROM_LLVM})


@functools.cache
def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    out: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        out.setdefault(key.strip(), value.strip())
    return out


def cpu_features() -> frozenset[str] | None:
    """Features of this machine; None where they cannot be read (not Linux)."""
    info = _cpuinfo()
    flags = info.get("flags") or info.get("Features")
    return frozenset(flags.split()) if flags else None


def cpu_model() -> str:
    """The CPU's name for people."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def check_cpu(path: Any, target: Mapping[str, Any]) -> None:
    """Refuse code that this machine cannot execute.

    Args:
        path: of the artifact, for the message.
        target: the manifest's entry.

    Raises:
        ArtifactError: other architecture, or instructions that this CPU lacks.
    """
    arch = target.get("arch")
    if arch and arch != platform.machine():
        raise ArtifactError(
            f"{path}: compiled for {arch}, this machine is {platform.machine()}; "
            "compile it for this machine"
        )
    have = cpu_features()
    missing = sorted(set(target.get("features", ())) - have) if have is not None else []
    if missing:
        raise ArtifactError(
            f"{path}: compiled for a CPU with {', '.join(missing)}, which this one "
            f"({cpu_model()}) lacks; compile it on this machine or for an older CPU"
        )
