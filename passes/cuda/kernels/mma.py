"""Products on tensor cores: fragments of a warp, and the device functions that multiply them.

``mma.sync`` of PTX, with float32 sums. A fragment's elements lie in the registers of a warp's 32
lanes (PTX ISA, "Matrix Fragments for mma.m16n8k8" and "m16n8k16"): with g = lane / 4 and
q = lane % 4, lane holds of the sums [16, 8] rows g and g + 8, columns 2q and 2q + 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.stmt import Stmt

__all__ = ["FUNCTIONS", "PACK", "PRECISIONS", "WORDS", "product", "with_functions", "word"]

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""How the operands of products are rounded; the first does not use tensor cores."""

PACK = {"fp32": 1, "tf32": 1, "bf16": 2, "fp16": 2}
"""Terms in a word of shared memory, neighbours in the sum."""

WORDS = 8
"""Words of 32 bits that one product of fragments takes from a row."""

FUNCTIONS = r"""
#ifdef __CUDACC__
#define TTSNN_DEVICE static __device__ __forceinline__
#else
#define TTSNN_DEVICE static inline
#endif
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
TTSNN_DEVICE float ttsnn_word_tf32(float x) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return __uint_as_float(r);
}
TTSNN_DEVICE float ttsnn_word_bf16(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return __uint_as_float(r);
}
TTSNN_DEVICE float ttsnn_word_fp16(float low, float high) {
  unsigned r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return __uint_as_float(r);
}
// the last bits of 2^23, from which a subtraction makes a number faster than a conversion does
TTSNN_DEVICE float ttsnn_byte(unsigned word, int i) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7650 + i)) - 8388608.0f;
}
#define TTSNN_BITS(x) "r"(__float_as_uint(x))
#define TTSNN_MMA(name, shape)                                                         \
  TTSNN_DEVICE void name(float* d, const float* a, const float* b) {                   \
    asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "  \
                 "{%0,%1,%2,%3};"                                                      \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                      \
                 : TTSNN_BITS(a[0]), TTSNN_BITS(a[1]), TTSNN_BITS(a[2]),               \
                   TTSNN_BITS(a[3]), TTSNN_BITS(b[0]), TTSNN_BITS(b[1]));              \
  }
TTSNN_MMA(ttsnn_mma_tf32_words, "m16n8k8.row.col.f32.tf32.tf32.f32")
TTSNN_MMA(ttsnn_mma_bf16_words, "m16n8k16.row.col.f32.bf16.bf16.f32")
TTSNN_MMA(ttsnn_mma_fp16_words, "m16n8k16.row.col.f32.f16.f16.f32")
#elif !defined(__CUDACC__)
// the same fragments, exchanged by shuffles, for a host compiler
TTSNN_DEVICE unsigned ttsnn_bits(float x) {
  unsigned u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
TTSNN_DEVICE float ttsnn_float(unsigned u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}
TTSNN_DEVICE float ttsnn_byte(unsigned word, int i) {
  return static_cast<float>(word >> 8 * i & 255u);
}
TTSNN_DEVICE float ttsnn_rounded(float x, int bits) {
  unsigned u = ttsnn_bits(x);
  if ((u & 0x7f800000u) == 0x7f800000u) return x;
  unsigned half = 1u << (bits - 1), rest = u & ((1u << bits) - 1);
  u -= rest;
  // tf32 rounds halves away from zero, bf16 to even
  if (rest > half || (rest == half && (bits == 13 || (u >> bits & 1)))) u += 1u << bits;
  return ttsnn_float(u);
}
TTSNN_DEVICE float ttsnn_word_tf32(float x) { return ttsnn_rounded(x, 13); }
TTSNN_DEVICE float ttsnn_word_bf16(float low, float high) {
  return ttsnn_float(ttsnn_bits(ttsnn_rounded(low, 16)) >> 16 |
                     (ttsnn_bits(ttsnn_rounded(high, 16)) & 0xffff0000u));
}
TTSNN_DEVICE float ttsnn_word_fp16(float low, float high) {
  _Float16 both[2] = {static_cast<_Float16>(low), static_cast<_Float16>(high)};
  float packed;
  __builtin_memcpy(&packed, both, 4);
  return packed;
}
template <int pack, typename Part>
TTSNN_DEVICE void ttsnn_mma_words(float* d, const float* a, const float* b, Part part) {
  int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (int k = 0; k < 8; ++k) {
    int from = k % 4, upper = k / 4;
    float low = __shfl_sync(0xffffffffu, a[2 * upper], g * 4 + from);
    float high = __shfl_sync(0xffffffffu, a[2 * upper + 1], g * 4 + from);
    for (int e = 0; e < 2; ++e) {
      float w = __shfl_sync(0xffffffffu, b[upper], (2 * q + e) * 4 + from);
      for (int i = 0; i < pack; ++i) {
        d[e] += part(low, i) * part(w, i);
        d[2 + e] += part(high, i) * part(w, i);
      }
    }
  }
}
TTSNN_DEVICE void ttsnn_mma_tf32_words(float* d, const float* a, const float* b) {
  ttsnn_mma_words<1>(d, a, b, [](float x, int) { return x; });
}
TTSNN_DEVICE void ttsnn_mma_bf16_words(float* d, const float* a, const float* b) {
  ttsnn_mma_words<2>(d, a, b, [](float x, int i) {
    return ttsnn_float(i ? ttsnn_bits(x) & 0xffff0000u : ttsnn_bits(x) << 16);
  });
}
TTSNN_DEVICE void ttsnn_mma_fp16_words(float* d, const float* a, const float* b) {
  ttsnn_mma_words<2>(d, a, b, [](float x, int i) {
    _Float16 both[2];
    __builtin_memcpy(both, &x, 4);
    return static_cast<float>(both[i]);
  });
}
#else
// nvcc reads device code once for the host too
TTSNN_DEVICE float ttsnn_byte(unsigned, int) { return 0; }
TTSNN_DEVICE float ttsnn_word_tf32(float) { return 0; }
TTSNN_DEVICE float ttsnn_word_bf16(float, float) { return 0; }
TTSNN_DEVICE float ttsnn_word_fp16(float, float) { return 0; }
TTSNN_DEVICE void ttsnn_mma_tf32_words(float*, const float*, const float*) {}
TTSNN_DEVICE void ttsnn_mma_bf16_words(float*, const float*, const float*) {}
TTSNN_DEVICE void ttsnn_mma_fp16_words(float*, const float*, const float*) {}
#endif
"""
"""Words, which count as float32, of one rounded number (tf32) or two; ``d [4] += a [4] · b [2]`` of
words: those of a row's q and q + 4, of rows g and g + 8 each, and those of column g. And numbers of
the bytes of a word."""


def word(precision: str, terms: Sequence[Expr]) -> Expr:
    """The word, as float32, of ``PACK`` neighbouring terms, rounded."""
    if precision == "fp32":
        return terms[0]
    return tirx.call_extern("float32", f"ttsnn_word_{precision}", *terms)


def product(precision: str, sums: Expr, a: Expr, b: Expr) -> Stmt:
    """Four sums += the product of two fragments; each named by its first element."""
    first = [tirx.address_of(x) for x in (sums, a, b)]
    return tirx.Evaluate(tirx.call_extern("void", f"ttsnn_mma_{precision}_words", *first))


def with_functions(source: str) -> str:
    """CUDA source with the functions that it calls, before its kernels."""
    if "ttsnn_mma_" not in source:
        return source
    at = source.index('extern "C" __global__')
    return source[:at] + FUNCTIONS + source[at:]
