"""Products on tensor cores of operands that were rounded when they were stored.

A word holds one number as tf32, or two neighbouring terms as bf16 or fp16; it counts as float32 so
that it can lie beside sums. A product is of 8 words, whatever they hold: with g and q as in
``mma.py``, a is the words q, q, q + 4, q + 4 of rows g, g + 8, g, g + 8; b the words q and q + 4
of column g.
"""

from __future__ import annotations

__all__ = ["WORDS"]

WORDS = r"""
#if defined(__CUDACC__) && defined(__CUDA_ARCH__)
TTSNN_DEVICE float ttsnn_word_tf32(float x) { return __uint_as_float(ttsnn_tf32(x)); }
TTSNN_DEVICE float ttsnn_word_bf16(float x, float y) { return __uint_as_float(ttsnn_bf16x2(x, y)); }
TTSNN_DEVICE float ttsnn_word_fp16(float x, float y) { return __uint_as_float(ttsnn_fp16x2(x, y)); }
// the last bits of 2^23, from which a subtraction makes a number faster than a conversion does
TTSNN_DEVICE float ttsnn_byte(unsigned word, int i) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7650 + i)) - 8388608.0f;
}
#define TTSNN_MMA_WORDS(name, shape)                                                          \
  TTSNN_DEVICE void name(float* d, const float* a, const float* b) {                          \
    TTSNN_MMA(shape, d, __float_as_uint(a[0]), __float_as_uint(a[1]), __float_as_uint(a[2]),  \
              __float_as_uint(a[3]), __float_as_uint(b[0]), __float_as_uint(b[1]));           \
  }
TTSNN_MMA_WORDS(ttsnn_mma_tf32_words, "m16n8k8.row.col.f32.tf32.tf32.f32")
TTSNN_MMA_WORDS(ttsnn_mma_bf16_words, "m16n8k16.row.col.f32.bf16.bf16.f32")
TTSNN_MMA_WORDS(ttsnn_mma_fp16_words, "m16n8k16.row.col.f32.f16.f16.f32")
#elif !defined(__CUDACC__)
TTSNN_DEVICE float ttsnn_byte(unsigned word, int i) {
  return static_cast<float>(word >> 8 * i & 255u);
}
TTSNN_DEVICE unsigned ttsnn_half_bits(float x) {
  _Float16 h = static_cast<_Float16>(x);
  unsigned short u;
  __builtin_memcpy(&u, &h, 2);
  return u;
}
TTSNN_DEVICE float ttsnn_half(unsigned bits) {
  unsigned short u = static_cast<unsigned short>(bits);
  _Float16 h;
  __builtin_memcpy(&h, &u, 2);
  return h;
}
TTSNN_DEVICE float ttsnn_word_tf32(float x) { return ttsnn_rounded(x, 13); }
TTSNN_DEVICE float ttsnn_word_bf16(float x, float y) {
  unsigned low = __float_as_uint(ttsnn_rounded(x, 16)) >> 16;
  return __uint_as_float(low | (__float_as_uint(ttsnn_rounded(y, 16)) & 0xffff0000u));
}
TTSNN_DEVICE float ttsnn_word_fp16(float x, float y) {
  return __uint_as_float(ttsnn_half_bits(x) | ttsnn_half_bits(y) << 16);
}
template <typename Term>
TTSNN_DEVICE void ttsnn_mma_words(float* d, const float* a, const float* b, int terms, Term term) {
  int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
  for (int word = 0; word < 8; ++word) {
    int from = word % 4, upper = word / 4;
    float low = TTSNN_LANE(a[2 * upper], g * 4 + from);
    float high = TTSNN_LANE(a[2 * upper + 1], g * 4 + from);
    for (int e = 0; e < 2; ++e) {
      float w = TTSNN_LANE(b[upper], (2 * q + e) * 4 + from);
      for (int t = 0; t < terms; ++t) {
        d[e] += term(low, t) * term(w, t);
        d[2 + e] += term(high, t) * term(w, t);
      }
    }
  }
}
TTSNN_DEVICE void ttsnn_mma_tf32_words(float* d, const float* a, const float* b) {
  ttsnn_mma_words(d, a, b, 1, [](float x, int) { return x; });
}
TTSNN_DEVICE void ttsnn_mma_bf16_words(float* d, const float* a, const float* b) {
  ttsnn_mma_words(d, a, b, 2, [](float x, int t) {
    return __uint_as_float(t ? __float_as_uint(x) & 0xffff0000u : __float_as_uint(x) << 16);
  });
}
TTSNN_DEVICE void ttsnn_mma_fp16_words(float* d, const float* a, const float* b) {
  ttsnn_mma_words(d, a, b, 2, [](float x, int t) {
    return ttsnn_half(__float_as_uint(x) >> 16 * t);
  });
}
#else
TTSNN_DEVICE float ttsnn_byte(unsigned, int) { return 0; }
TTSNN_DEVICE float ttsnn_word_tf32(float) { return 0; }
TTSNN_DEVICE float ttsnn_word_bf16(float, float) { return 0; }
TTSNN_DEVICE float ttsnn_word_fp16(float, float) { return 0; }
TTSNN_DEVICE void ttsnn_mma_tf32_words(float*, const float*, const float*) {}
TTSNN_DEVICE void ttsnn_mma_bf16_words(float*, const float*, const float*) {}
TTSNN_DEVICE void ttsnn_mma_fp16_words(float*, const float*, const float*) {}
#endif
"""
"""``d [4] += a [4] · b [2]``, what makes words of numbers, and numbers of the bytes of a word."""
