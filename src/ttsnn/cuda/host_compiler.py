"""The C++ compiler of this machine."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from ttsnn.errors import TargetError

__all__ = ["compiler_id", "cxx", "run_cxx"]


def cxx() -> str:
    """``$CXX``, g++ or clang++.

    Raises:
        TargetError: there is none.
    """
    for name in filter(None, (os.environ.get("CXX"), "g++", "c++", "clang++")):
        found = shutil.which(name)
        if found:
            return found
    raise TargetError(
        "no C++ compiler (g++ or clang++): the CUDA emulator compiles kernels with one; install "
        "g++ or set CXX"
    )


@functools.cache
def compiler_id() -> str:
    """What decides over compiled code: the compiler's path and version."""
    program = cxx()
    return program + subprocess.run([program, "--version"], capture_output=True, text=True).stdout


def run_cxx(arguments: Sequence[str | os.PathLike], out: Path, what: str) -> None:
    """Compile a shared library.

    Args:
        arguments: sources and flags.
        out: the library.
        what: is named in the error.

    Raises:
        TargetError: the compiler refuses.
    """
    flags = ["-shared", "-fPIC", "-O2", "-fno-exceptions", "-pthread", "-o", str(out)]
    command = [cxx(), *map(str, arguments), *flags]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if "error" in line]
        raise TargetError(
            f"{what}: {command[0]} fails: {'; '.join(lines[:3]) or result.stderr[-300:]}"
        )
