"""CUDA source to machine code of NVIDIA's GPUs, on a machine with or without one.

nvcc where there is a toolkit, else NVRTC, which comes by pip: ``pip install 'ttsnn[cuda]'``.
No GPU is asked what it is: architectures are named.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ttsnn.cuda import nvrtc
from ttsnn.cuda.cache import cached, key_of
from ttsnn.cuda.toolkit import find_nvcc
from ttsnn.cuda.usage import KernelUsage, parse_usage
from ttsnn.errors import TargetError

__all__ = ["COMPILERS", "CudaOptions", "DeviceCode", "compile_cuda", "known_archs", "parse_archs"]

COMPILERS = ("nvcc", "nvrtc")


@dataclass(frozen=True)
class CudaOptions:
    """How device code is compiled.

    Attributes:
        archs: ``sm_80``, ``sm_90a`` …; the code of all of them goes into one image.
        fmad: contract ``a * b + c`` into one instruction that rounds once; False for the sums of
            a CPU, bit by bit.
        fast_math: nvcc's ``--use_fast_math``: approximate division and functions, denormals
            flushed. Spikes near the threshold flip.
        compiler: ``"nvcc"`` or ``"nvrtc"``; None: the first that is there.
    """

    archs: tuple[str, ...]
    fmad: bool = True
    fast_math: bool = False
    compiler: str | None = None

    @property
    def flags(self) -> list[str]:
        """Those that both compilers take."""
        fast = ["--use_fast_math"] if self.fast_math else []
        return ["-std=c++17", f"--fmad={str(self.fmad).lower()}", *fast]

    @property
    def ptx_arch(self) -> str | None:
        """The newest architecture whose PTX later GPUs can run: ``sm_90a``'s they can't."""
        plain = [a for a in self.archs if re.fullmatch(r"sm_\d+", a)]
        return max(plain, key=lambda a: int(a[3:])).replace("sm_", "compute_") if plain else None


@dataclass(frozen=True)
class DeviceCode:
    """An image for the driver, and what the compiler says of its kernels."""

    image: bytes
    usage: tuple[KernelUsage, ...] = ()
    compiler: str = ""
    flags: tuple[str, ...] = ()
    source: str = field(default="", repr=False)


def parse_archs(text: str) -> tuple[str, ...]:
    """``"sm_80+sm_90"`` → ``("sm_80", "sm_90")``, sorted, each once.

    Raises:
        TargetError: something that is no architecture.
    """
    archs = sorted({a.strip() for a in re.split(r"[+,]", text) if a.strip()}, key=_arch_order)
    for arch in archs:
        if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
            raise TargetError(f"target cuda: arch {arch!r} is none; write sm_90, or sm_80+sm_90")
    if not archs:
        raise TargetError("target cuda: no arch given; write arch=sm_90, or arch=sm_80+sm_90")
    return tuple(archs)


def _arch_order(arch: str) -> tuple[int, str]:
    number = re.search(r"\d+", arch)
    return (int(number[0]) if number else 0, arch)


def compile_cuda(source: str, options: CudaOptions) -> DeviceCode:
    """Compile CUDA source.

    Args:
        source: the kernels.
        options: architectures and how to compile.

    Returns:
        A fat binary with machine code for each architecture and PTX of the newest one. The same
        source and options give it again from the user's cache.

    Raises:
        TargetError: no compiler, an architecture that it doesn't know, or a source that it
            refuses.
    """
    name, version = find_compiler(options.compiler)
    _check_archs(options.archs, known_archs(options.compiler), f"{name} {version}")

    def make(path: Path) -> None:
        image, log = (_nvcc if name == "nvcc" else _nvrtc)(source, options)
        head = json.dumps({"log": log}).encode() + b"\n"
        path.write_bytes(head + image)

    key = key_of(source, name, version, repr(options))
    head, _, image = cached(f"cuda-{key}.bin", make).read_bytes().partition(b"\n")
    usage = tuple(parse_usage(json.loads(head)["log"]))
    return DeviceCode(image, usage, f"{name} {version}", tuple(options.flags), source)


def find_compiler(wanted: str | None = None) -> tuple[str, str]:
    """Name and version of the compiler that :func:`compile_cuda` takes.

    Raises:
        TargetError: there is none, or not the wanted one.
    """
    if wanted not in (None, *COMPILERS):
        raise TargetError(f"target cuda: compiler {wanted!r}; there are {', '.join(COMPILERS)}")
    nvcc = find_nvcc() if wanted != "nvrtc" else None
    if nvcc is not None:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"V([\d.]+)", text)
        return "nvcc", found[1] if found else "unknown"
    version = nvrtc.version() if wanted != "nvcc" else None
    if version is not None:
        return "nvrtc", version
    what = wanted or "CUDA compiler (nvcc or NVRTC)"
    raise TargetError(
        f"target cuda: no {what} on this machine: pip install 'ttsnn[cuda]', or install CUDA's "
        "toolkit and set CUDA_PATH to its folder; no GPU is needed"
    )


def known_archs(compiler: str | None = None) -> tuple[str, ...]:
    """Architectures that the compiler generates code for."""
    name, _ = find_compiler(compiler)
    if name == "nvrtc":
        return nvrtc.archs()
    text = subprocess.run(
        [str(find_nvcc()), "--list-gpu-code"], capture_output=True, text=True
    ).stdout
    return tuple(sorted(set(re.findall(r"sm_\d+", text)), key=_arch_order))


def _check_archs(archs: Sequence[str], known: Sequence[str], compiler: str) -> None:
    for arch in archs:
        if arch.rstrip("af") not in known:
            close = difflib.get_close_matches(arch, known, n=2, cutoff=0.7)
            hint = f", did you mean {' or '.join(close)}?" if close else ""
            raise TargetError(
                f"target cuda: {compiler} has no arch {arch}{hint}; it knows {', '.join(known)}"
            )


def _nvcc(source: str, options: CudaOptions) -> tuple[bytes, str]:
    with tempfile.TemporaryDirectory(prefix="ttsnn-") as folder:
        unit, out = Path(folder) / "kernels.cu", Path(folder) / "kernels.fatbin"
        unit.write_text(source)
        codes = []
        for arch in options.archs:
            codes += ["-gencode", f"arch={arch.replace('sm_', 'compute_')},code={arch}"]
        if options.ptx_arch is not None:
            codes += ["-gencode", f"arch={options.ptx_arch},code={options.ptx_arch}"]
        command = [str(find_nvcc()), "-fatbin", "-O3", "-w", "-Xptxas", "-v", "--threads", "0"]
        command += [*codes, *options.flags, "-o", str(out), str(unit)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise TargetError(f"target cuda: nvcc fails: {_errors(result.stderr)}")
        return out.read_bytes(), result.stderr


def _nvrtc(source: str, options: CudaOptions) -> tuple[bytes, str]:
    images, logs = [], []
    for arch in options.archs:
        cubin, log = nvrtc.compile_program(source, arch, options.flags, "cubin")
        images.append((arch, "cubin", cubin))
        logs.append(log)
    if options.ptx_arch is not None:
        ptx, _ = nvrtc.compile_program(source, options.ptx_arch, options.flags, "ptx")
        images.append((options.ptx_arch, "ptx", ptx))
    return nvrtc.fat_binary(images), "\n".join(logs)


def _errors(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if "error" in line or "fatal" in line]
    return "; ".join(lines[:3]) or log.strip()[-300:]
