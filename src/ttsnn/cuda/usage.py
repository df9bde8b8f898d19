"""What the compiler says of a kernel: registers, shared memory, spills."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["KernelUsage", "parse_usage"]


@dataclass(frozen=True)
class KernelUsage:
    """One kernel on one architecture, as ptxas reports it.

    Attributes:
        kernel: name.
        arch: ``"sm_90"``.
        registers: of a thread.
        shared_bytes: static shared memory of a block.
        stack_bytes: of a thread, spilled registers included.
        spill_stores, spill_loads: bytes.
        barriers: named barriers of a block.
    """

    kernel: str
    arch: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int
    barriers: int

    def to_json(self) -> dict[str, Any]:
        """Plain dict."""
        return asdict(self)


_ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used (\d+) barriers)?")
_SHARED = re.compile(r"(\d+) bytes smem")


def parse_usage(log: str) -> list[KernelUsage]:
    """Read what ``ptxas -v`` prints: kernels in their order, one entry an architecture."""
    out = []
    kernel = arch = ""
    stack = (0, 0, 0)
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            kernel, arch = match.groups()
            stack = (0, 0, 0)
        elif match := _STACK.search(line):
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and kernel:
            shared = _SHARED.search(line)
            out.append(
                KernelUsage(
                    kernel,
                    arch,
                    int(match[1]),
                    int(shared[1]) if shared else 0,
                    *stack,
                    int(match[2] or 0),
                )
            )
            kernel = ""
    return out
