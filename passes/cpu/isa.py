"""What the kernels need to know of a CPU: vector width, registers, caches, cores."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm.target import codegen

__all__ = ["Isa", "isa_of"]


@dataclass(frozen=True)
class Isa:
    """Properties of a CPU.

    Attributes:
        name: ``"avx512"``, ``"avx2"`` or ``"generic"`` (128-bit vectors: SSE2, NEON).
        vector_bytes: width of a vector register.
        registers: number of vector registers.
        l2_bytes: second-level cache that one core can count on.
    """

    name: str
    vector_bytes: int
    registers: int
    l2_bytes: int = 512 * 1024

    def lanes(self, dtype: str) -> int:
        """Elements of a vector: 16 float32 on AVX-512."""
        return self.vector_bytes // (8 if dtype.endswith("64") else 4)


AVX512 = Isa("avx512", 64, 32)
AVX2 = Isa("avx2", 32, 16)
GENERIC = Isa("generic", 16, 16)


def isa_of(target: tvm.target.Target) -> Isa:
    """The instruction set of an ``llvm`` target, from its ``mcpu`` and ``mattr``."""
    if codegen.target_has_features("avx512f", target):
        return AVX512
    return AVX2 if codegen.target_has_features(["avx2", "fma"], target) else GENERIC
