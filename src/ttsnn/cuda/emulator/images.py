"""CUDA source to an image that the emulated driver loads."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from ttsnn.cuda.cache import cached, key_of
from ttsnn.cuda.emulator.stand_in import INCLUDE
from ttsnn.cuda.host_compiler import compiler_id, run_cxx
from ttsnn.errors import TargetError

__all__ = ["MAGIC", "compile_source"]

MAGIC = b"TTSNNEMU"
"""First bytes of an image; the library's length in 8 bytes and the library follow."""

_KERNEL = re.compile(
    r'extern "C" __global__ void(?:\s+__launch_bounds__\((?P<bounds>\d+)[^)]*\))?'
    r"\s+(?P<name>\w+)\((?P<parameters>[^)]*)\)\s*\{"
)
_SHARED = re.compile(
    r"^(?P<extern>\s*extern)?\s*__shared__\s+(?:alignas|__align__)?(?:\(\d+\))?\s*"
    r"(?P<type>[\w ]+?)\s+(?P<name>\w+)\[(?P<size>[^\]]*)\];",
    re.MULTILINE,
)
_COOPERATION = re.compile(
    r"\b(__sync\w+|__shfl\w+|__ballot_sync|__any_sync|__all_sync|__activemask)\b"
)
_FLAGS = (
    "-std=gnu++17",
    "-w",
    "-fno-gnu-unique",  # else the library stays when its module goes
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fwrapv",
    "-fno-math-errno",
    "-fno-trapping-math",
)


def compile_source(source: str, arch: int = 90) -> bytes:
    """Compile CUDA source, as TVM generates it, for the emulated device.

    Args:
        source: kernels are ``extern "C" __global__``; shared arrays stand in their bodies.
        arch: what ``__CUDA_ARCH__`` says, 90 for sm_90.

    Returns:
        An image; the same source gives it again from the user's cache.

    Raises:
        TargetError: no C++ compiler, or something that is not emulated.
    """
    text = translate(source, arch)
    headers = [
        INCLUDE / "ttsnn_device.h",
        INCLUDE / "ttsnn_kernel.h",
        *sorted((INCLUDE / "shim").glob("*.h")),
    ]
    key = key_of(text, compiler_id(), *_FLAGS, *(path.read_bytes() for path in headers))

    def make(path: Path) -> None:
        unit = path.with_suffix(".cc")
        unit.write_text(text)
        try:
            folders = [f"-I{INCLUDE}", f"-I{INCLUDE / 'shim'}"]
            run_cxx([str(unit), *_FLAGS, *folders], path, "CUDA kernels for the emulated device")
        finally:
            unit.unlink()

    library = cached(f"kernels-{key}.so", make).read_bytes()
    return MAGIC + struct.pack("<Q", len(library)) + library


@dataclass(frozen=True)
class _Kernel:
    name: str
    bound: int
    begin: int
    end: int


def translate(source: str, arch: int) -> str:
    """The source as C++ for the host: shared arrays placed, kernels described."""
    found = list(_KERNEL.finditer(source))
    if not found:
        raise TargetError("no kernel in the CUDA source")
    ends = [m.start() for m in found[1:]] + [len(source)]
    kernels = [
        _Kernel(m["name"], int(m["bounds"] or 1024), m.start(), end) for m, end in zip(found, ends)
    ]
    helpers = source[: found[0].start()]
    plain = "\n".join(line for line in helpers.splitlines() if not line.lstrip().startswith("#"))
    if "__shared__" in plain:
        raise TargetError("shared memory outside a kernel is not emulated")
    helpers_cooperate = bool(_COOPERATION.search(_without_continuations(helpers)))
    parts = [
        f"#define TTSNN_CUDA_ARCH {arch * 10}",
        '#include "ttsnn_kernel.h"',
        helpers,
    ]
    tables = []
    for kernel in kernels:
        body = source[kernel.begin : kernel.end]
        layout, body, arrays = _place_shared(kernel.name, body)
        cooperates = helpers_cooperate or bool(_COOPERATION.search(body))
        parts += [layout, body]
        tables.append((kernel, arrays, cooperates))
    return "\n".join([*parts, _describe(tables)])


def _without_continuations(text: str) -> str:
    """Without preprocessor lines, those that go on included."""
    out, inside = [], False
    for line in text.splitlines():
        directive = inside or line.lstrip().startswith("#")
        inside = directive and line.rstrip().endswith("\\")
        if not directive:
            out.append(line)
    return "\n".join(out)


def _place_shared(kernel: str, body: str) -> tuple[str, str, list[str]]:
    """Shared arrays become references into the block's memory, with a guarded gap behind each."""
    names: list[str] = []
    layout = []
    end = "0"

    def place(match: re.Match) -> str:
        nonlocal end
        kind, name, size = match["type"], match["name"], match["size"]
        if match["extern"]:
            return f"{kind}* const {name} = ({kind}*)(ttsnn_thread.shared + {{dynamic}});"
        at = f"ttsnn_at_{kernel}_{len(names)}"
        layout.append(f"constexpr size_t {at} = {end}, {at}_size = sizeof({kind}[{size}]);")
        end = f"ttsnn::next_shared({at}, {at}_size)"
        names.append(name)
        return f"{kind} (&{name})[{size}] = *({kind}(*)[{size}])(ttsnn_thread.shared + {at});"

    body = _SHARED.sub(place, body)
    if "__shared__" in body:
        raise TargetError(f"kernel {kernel}: a declaration of shared memory is not understood")
    layout.append(f"constexpr size_t ttsnn_shared_{kernel} = {end};")
    return "\n".join(layout), body.replace("{dynamic}", f"ttsnn_shared_{kernel}"), names


def _describe(tables: list[tuple[_Kernel, list[str], bool]]) -> str:
    """The table that the driver reads: ``ttsnn_image``."""
    lines, entries = [], []
    for kernel, arrays, cooperates in tables:
        rows = "".join(
            f'{{"{array}", ttsnn_at_{kernel.name}_{i}, ttsnn_at_{kernel.name}_{i}_size}}, '
            for i, array in enumerate(arrays)
        )
        lines.append(
            f"static const ttsnn::SharedArray ttsnn_arrays_{kernel.name}[] = {{{rows}{{}}}};"
        )
        entry = f"ttsnn::Entry<{kernel.name}>"
        entries.append(
            f'  {{"{kernel.name}", {entry}::one, {entry}::all, {entry}::parameters, '
            f"{entry}::count, ttsnn_arrays_{kernel.name}, {len(arrays)}, "
            f"ttsnn_shared_{kernel.name}, {kernel.bound}, {str(cooperates).lower()}}},"
        )
    return "\n".join(
        [
            *lines,
            "static const ttsnn::Kernel ttsnn_kernels[] = {",
            *entries,
            "};",
            'extern "C" const ttsnn::Image ttsnn_image = '
            f"{{ttsnn::kImageVersion, {len(entries)}, ttsnn_kernels}};",
        ]
    )
