"""Products on tensor cores: fragments of a warp, and the device functions that multiply them.

``mma.sync`` of PTX, with float32 sums. A fragment's elements lie in the registers of a warp's 32
lanes (PTX ISA, "Matrix Fragments for mma.m16n8k8" and "m16n8k16"): with g = lane / 4 and
q = lane % 4, lane holds of the sums [16, 8] rows g and g + 8, columns 2q and 2q + 1.
"""

from __future__ import annotations

from ttsnn.passes.cuda.kernels.mma_words import WORDS

__all__ = ["DEPTH", "FUNCTIONS", "PRECISIONS", "with_functions"]

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
"""How the operands of products are rounded; the first does not use tensor cores."""

DEPTH = {"tf32": 8, "bf16": 16, "fp16": 16}
"""Terms of one product of fragments."""

FUNCTIONS = r"""
#ifdef __CUDACC__
#define TTSNN_DEVICE static __device__ __forceinline__
#else
#define TTSNN_DEVICE static inline
#endif
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
TTSNN_DEVICE unsigned ttsnn_tf32(float x) {
  unsigned r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}
TTSNN_DEVICE unsigned ttsnn_bf16x2(float low, float high) {
  unsigned r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
TTSNN_DEVICE unsigned ttsnn_fp16x2(float low, float high) {
  unsigned r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
#define TTSNN_MMA(shape, d, a0, a1, a2, a3, b0, b1)                                    \
  asm volatile("mma.sync.aligned." shape " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "   \
               "{%0,%1,%2,%3};"                                                        \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                        \
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1))
TTSNN_DEVICE void ttsnn_mma_tf32(float* d, const float* a, const float* b) {
  TTSNN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", d, ttsnn_tf32(a[0]), ttsnn_tf32(a[1]),
            ttsnn_tf32(a[2]), ttsnn_tf32(a[3]), ttsnn_tf32(b[0]), ttsnn_tf32(b[1]));
}
TTSNN_DEVICE void ttsnn_mma_bf16(float* d, const float* a, const float* b) {
  TTSNN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", d, ttsnn_bf16x2(a[0], a[1]),
            ttsnn_bf16x2(a[2], a[3]), ttsnn_bf16x2(a[4], a[5]), ttsnn_bf16x2(a[6], a[7]),
            ttsnn_bf16x2(b[0], b[1]), ttsnn_bf16x2(b[2], b[3]));
}
TTSNN_DEVICE void ttsnn_mma_fp16(float* d, const float* a, const float* b) {
  TTSNN_MMA("m16n8k16.row.col.f32.f16.f16.f32", d, ttsnn_fp16x2(a[0], a[1]),
            ttsnn_fp16x2(a[2], a[3]), ttsnn_fp16x2(a[4], a[5]), ttsnn_fp16x2(a[6], a[7]),
            ttsnn_fp16x2(b[0], b[1]), ttsnn_fp16x2(b[2], b[3]));
}
#elif !defined(__CUDACC__)
// the same fragments, exchanged by shuffles, for a host compiler
TTSNN_DEVICE float ttsnn_rounded(float x, int bits) {
  unsigned u;
  __builtin_memcpy(&u, &x, 4);
  if ((u & 0x7f800000u) == 0x7f800000u) return x;
  unsigned half = 1u << (bits - 1), rest = u & ((1u << bits) - 1);
  u -= rest;
  // tf32 rounds halves away from zero, bf16 to even
  if (rest > half || (rest == half && (bits == 13 || (u >> bits & 1)))) u += 1u << bits;
  __builtin_memcpy(&x, &u, 4);
  return x;
}
TTSNN_DEVICE float ttsnn_round_fp16(float x) {
  return static_cast<float>(static_cast<_Float16>(x));
}
#define TTSNN_LANE(x, lane) __shfl_sync(0xffffffffu, x, lane)
TTSNN_DEVICE void ttsnn_mma_tf32(float* d, const float* a, const float* b) {
  int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (int k = 0; k < 8; ++k) {
    int from = k % 4, upper = k / 4;
    float low = ttsnn_rounded(TTSNN_LANE(a[2 * upper], g * 4 + from), 13);
    float high = ttsnn_rounded(TTSNN_LANE(a[2 * upper + 1], g * 4 + from), 13);
    for (int e = 0; e < 2; ++e) {
      float w = ttsnn_rounded(TTSNN_LANE(b[upper], (2 * q + e) * 4 + from), 13);
      d[e] += low * w;
      d[2 + e] += high * w;
    }
  }
}
template <typename Round>
TTSNN_DEVICE void ttsnn_mma_16(float* d, const float* a, const float* b, Round round) {
  int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (int k = 0; k < 16; ++k) {
    int from = k % 8 / 2, odd = k % 2, upper = k / 8;
    float low = round(TTSNN_LANE(a[4 * upper + odd], g * 4 + from));
    float high = round(TTSNN_LANE(a[4 * upper + 2 + odd], g * 4 + from));
    for (int e = 0; e < 2; ++e) {
      float w = round(TTSNN_LANE(b[2 * upper + odd], (2 * q + e) * 4 + from));
      d[e] += low * w;
      d[2 + e] += high * w;
    }
  }
}
TTSNN_DEVICE void ttsnn_mma_bf16(float* d, const float* a, const float* b) {
  ttsnn_mma_16(d, a, b, [](float x) { return ttsnn_rounded(x, 16); });
}
TTSNN_DEVICE void ttsnn_mma_fp16(float* d, const float* a, const float* b) {
  ttsnn_mma_16(d, a, b, [](float x) { return ttsnn_round_fp16(x); });
}
#else
// nvcc reads device code once for the host too
TTSNN_DEVICE void ttsnn_mma_tf32(float*, const float*, const float*) {}
TTSNN_DEVICE void ttsnn_mma_bf16(float*, const float*, const float*) {}
TTSNN_DEVICE void ttsnn_mma_fp16(float*, const float*, const float*) {}
#endif
"""
"""``d [4] += a · b``: a is [4] for tf32, [8] for the others, b [2] or [4], of float32."""


def with_functions(source: str) -> str:
    """CUDA source with the functions that it calls, before its kernels."""
    if "ttsnn_mma_" not in source:
        return source
    at = source.index('extern "C" __global__')
    return source[:at] + FUNCTIONS + WORDS + source[at:]
