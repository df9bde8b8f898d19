// CUDA's device language for a host compiler: prepended to every source that is emulated.
#ifndef TTSNN_KERNEL_H
#define TTSNN_KERNEL_H

#include <cmath>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>

#include "ttsnn_device.h"

#define __CUDA_ARCH__ TTSNN_CUDA_ARCH
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __grid_constant__
#define __noinline__ __attribute__((noinline))
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __cluster_dims__(...)

#define threadIdx (ttsnn_thread.thread)
#define blockIdx (ttsnn_thread.block)
#define blockDim (ttsnn_thread.block_dim)
#define gridDim (ttsnn_thread.grid_dim)
#define warpSize 32

// --- vector types -----------------------------------------------------------------------------

#define TTSNN_VECTOR(type, name, a1, a2, a4)                                              \
  struct alignas(a1) name##1 { type x; };                                                 \
  struct alignas(a2) name##2 { type x, y; };                                              \
  struct alignas(a4) name##4 { type x, y, z, w; };                                        \
  inline name##1 make_##name##1(type x) { return {x}; }                                   \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                        \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
#define TTSNN_VECTOR3(type, name)                                                         \
  struct name##3 { type x, y, z; };                                                       \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }

TTSNN_VECTOR(signed char, char, 1, 2, 4)
TTSNN_VECTOR(unsigned char, uchar, 1, 2, 4)
TTSNN_VECTOR(short, short, 2, 4, 8)
TTSNN_VECTOR(unsigned short, ushort, 2, 4, 8)
TTSNN_VECTOR(int, int, 4, 8, 16)
TTSNN_VECTOR(unsigned, uint, 4, 8, 16)
TTSNN_VECTOR(long, long, 8, 16, 16)
TTSNN_VECTOR(unsigned long, ulong, 8, 16, 16)
TTSNN_VECTOR(long long, longlong, 8, 16, 16)
TTSNN_VECTOR(unsigned long long, ulonglong, 8, 16, 16)
TTSNN_VECTOR(float, float, 4, 8, 16)
TTSNN_VECTOR(double, double, 8, 16, 16)
TTSNN_VECTOR3(signed char, char)
TTSNN_VECTOR3(unsigned char, uchar)
TTSNN_VECTOR3(short, short)
TTSNN_VECTOR3(unsigned short, ushort)
TTSNN_VECTOR3(int, int)
TTSNN_VECTOR3(long, long)
TTSNN_VECTOR3(long long, longlong)
TTSNN_VECTOR3(float, float)
TTSNN_VECTOR3(double, double)
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// --- functions --------------------------------------------------------------------------------

#define TTSNN_MINMAX(type, least, most)                          \
  inline type min(type a, type b) { return least; }              \
  inline type max(type a, type b) { return most; }
TTSNN_MINMAX(int, a < b ? a : b, a < b ? b : a)
TTSNN_MINMAX(unsigned, a < b ? a : b, a < b ? b : a)
TTSNN_MINMAX(long, a < b ? a : b, a < b ? b : a)
TTSNN_MINMAX(unsigned long, a < b ? a : b, a < b ? b : a)
TTSNN_MINMAX(long long, a < b ? a : b, a < b ? b : a)
TTSNN_MINMAX(unsigned long long, a < b ? a : b, a < b ? b : a)
TTSNN_MINMAX(float, ::fminf(a, b), ::fmaxf(a, b))
TTSNN_MINMAX(double, ::fmin(a, b), ::fmax(a, b))
inline unsigned min(int a, unsigned b) { return min(unsigned(a), b); }
inline unsigned min(unsigned a, int b) { return min(a, unsigned(b)); }
inline unsigned max(int a, unsigned b) { return max(unsigned(a), b); }
inline unsigned max(unsigned a, int b) { return max(a, unsigned(b)); }
inline double min(float a, double b) { return ::fmin(a, b); }
inline double min(double a, float b) { return ::fmin(a, b); }
inline double max(float a, double b) { return ::fmax(a, b); }
inline double max(double a, float b) { return ::fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / ::sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / ::sqrt(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return ::expf(x); }
inline float __exp10f(float x) { return ::powf(10.0f, x); }
inline float __logf(float x) { return ::logf(x); }
inline float __log2f(float x) { return ::log2f(x); }
inline float __log10f(float x) { return ::log10f(x); }
inline float __powf(float x, float y) { return ::powf(x, y); }
inline float __sinf(float x) { return ::sinf(x); }
inline float __cosf(float x) { return ::cosf(x); }
inline float __tanf(float x) { return ::tanf(x); }
inline float __saturatef(float x) { return x < 0.0f || x != x ? 0.0f : x > 1.0f ? 1.0f : x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return ::fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return ::fma(a, b, c); }

template <class To, class From>
inline To ttsnn_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}
inline int __float_as_int(float x) { return ttsnn_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return ttsnn_bits<unsigned>(x); }
inline float __int_as_float(int x) { return ttsnn_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return ttsnn_bits<float>(x); }
inline long long __double_as_longlong(double x) { return ttsnn_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return ttsnn_bits<double>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned out = 0;
  for (int i = 0; i < 32; ++i) out |= ((x >> i) & 1u) << (31 - i);
  return out;
}
inline int __mul24(int a, int b) { return ((a << 8) >> 8) * ((b << 8) >> 8); }
inline int __mulhi(int a, int b) { return int((int64_t(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += int(int8_t(a >> (8 * i))) * int(int8_t(b >> (8 * i)));
  return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
  for (int i = 0; i < 4; ++i) c += ((a >> (8 * i)) & 255u) * ((b >> (8 * i)) & 255u);
  return c;
}
template <class T>
inline T __ldg(const T* p) { return *p; }
template <class T>
inline T __ldcs(const T* p) { return *p; }
template <class T>
inline T __ldcg(const T* p) { return *p; }
template <class T>
inline void __stcs(T* p, T v) { *p = v; }
template <class T>
inline void __stcg(T* p, T v) { *p = v; }

// --- barriers, warps --------------------------------------------------------------------------

#define __syncthreads() ttsnn_barrier(__LINE__)
#define __syncthreads_count(p) ttsnn_barrier_count(__LINE__, (p) != 0)
#define __syncthreads_or(p) int(ttsnn_barrier_count(__LINE__, (p) != 0) > 0)
#define __syncthreads_and(p) int(ttsnn_barrier_count(__LINE__, (p) == 0) == 0)
#define __threadfence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_block() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __threadfence_system() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define __activemask() ttsnn_active_mask(__LINE__)
#define __trap() ttsnn_trap(__LINE__, "__trap")

inline int ttsnn_lane() {
  const dim3& d = ttsnn_thread.block_dim;
  return int((threadIdx.x + d.x * (threadIdx.y + d.y * threadIdx.z)) % 32u);
}

template <class T>
inline T ttsnn_shuffle(int line, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8, "shuffles take values of at most 8 bytes");
  uint64_t word = 0, values[32];
  std::memcpy(&word, &value, sizeof value);
  ttsnn_exchange(line, mask, word, values);
  std::memcpy(&value, &values[source & 31], sizeof value);
  return value;
}
template <class T>
inline T ttsnn_shfl(int line, unsigned mask, T value, int from, int width = 32) {
  const int lane = ttsnn_lane(), base = lane & ~(width - 1);
  return ttsnn_shuffle(line, mask, value, base + (from & (width - 1)));
}
template <class T>
inline T ttsnn_shfl_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = ttsnn_lane(), from = lane - int(delta);
  return ttsnn_shuffle(line, mask, value, from < (lane & ~(width - 1)) ? lane : from);
}
template <class T>
inline T ttsnn_shfl_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = ttsnn_lane(), from = lane + int(delta);
  return ttsnn_shuffle(line, mask, value, from > (lane | (width - 1)) ? lane : from);
}
template <class T>
inline T ttsnn_shfl_xor(int line, unsigned mask, T value, int bits, int width = 32) {
  const int lane = ttsnn_lane(), from = lane ^ bits;
  return ttsnn_shuffle(line, mask, value, from > (lane | (width - 1)) ? lane : from);
}
inline unsigned ttsnn_ballot(int line, unsigned mask, bool predicate) {
  uint64_t values[32];
  ttsnn_exchange(line, mask, predicate, values);
  unsigned out = 0;
  for (int i = 0; i < 32; ++i)
    if ((mask >> i) & 1u) out |= unsigned(values[i] & 1u) << i;
  return out;
}
#define __shfl_sync(...) ttsnn_shfl(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) ttsnn_shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) ttsnn_shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) ttsnn_shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, p) ttsnn_ballot(__LINE__, mask, (p) != 0)
#define __any_sync(mask, p) int(ttsnn_ballot(__LINE__, mask, (p) != 0) != 0)
#define __all_sync(mask, p) int(ttsnn_ballot(__LINE__, mask, (p) == 0) == 0)
inline void ttsnn_warp_barrier(int line, unsigned mask = 0xffffffffu) {
  uint64_t values[32];
  ttsnn_exchange(line, mask, 0, values);
}
#define __syncwarp(...) ttsnn_warp_barrier(__LINE__ __VA_OPT__(, ) __VA_ARGS__)

// --- atomics ----------------------------------------------------------------------------------

template <class T, class F>
inline T ttsnn_atomic(T* address, F next) {
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  for (T wanted = next(old);
       !__atomic_compare_exchange(address, &old, &wanted, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
       wanted = next(old)) {
  }
  return old;
}
template <class T>
using ttsnn_same = std::common_type_t<T>;  // no deduction from the operand
template <class T>
inline T atomicAdd(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T o) { return T(o + v); }); }
template <class T>
inline T atomicSub(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T o) { return T(o - v); }); }
template <class T>
inline T atomicMax(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T o) { return o < v ? v : o; }); }
template <class T>
inline T atomicMin(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T o) { return v < o ? v : o; }); }
template <class T>
inline T atomicAnd(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T o) { return T(o & v); }); }
template <class T>
inline T atomicOr(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T o) { return T(o | v); }); }
template <class T>
inline T atomicXor(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T o) { return T(o ^ v); }); }
template <class T>
inline T atomicExch(T* a, ttsnn_same<T> v) { return ttsnn_atomic(a, [=](T) { return v; }); }
template <class T>
inline T atomicCAS(T* a, ttsnn_same<T> expected, ttsnn_same<T> v) {
  return ttsnn_atomic(a, [=](T o) { return o == expected ? v : o; });
}

// --- description of the kernels for the driver --------------------------------------------------

namespace ttsnn {

constexpr uint64_t next_shared(uint64_t offset, uint64_t size) {
  return (offset + size + kSharedGap + 127) / 128 * 128;
}

template <auto F>
struct Entry;

template <class... A, void (*F)(A...)>
struct Entry<F> {
  static constexpr uint32_t count = sizeof...(A);
  static constexpr Parameter parameters[sizeof...(A) + 1] = {
      Parameter{uint32_t(sizeof(A)), std::is_pointer_v<A>,
                !std::is_const_v<std::remove_pointer_t<A>>}...,
      Parameter{0, false, false}};

  template <size_t... I>
  static inline __attribute__((always_inline)) void call(void** args, std::index_sequence<I...>) {
    F(*static_cast<A*>(args[I])...);
  }
  static void one(void** args) { call(args, std::index_sequence_for<A...>{}); }
  static void all(void** args) {
    const dim3 d = ttsnn_thread.block_dim;
    const unsigned n = d.x * d.y * d.z;
    for (unsigned i = 0; i < n; ++i) {
      const unsigned k = ttsnn_thread.order[i];
      ttsnn_thread.thread = {k % d.x, k / d.x % d.y, k / (d.x * d.y)};
      call(args, std::index_sequence_for<A...>{});
    }
  }
};

}  // namespace ttsnn

#endif
