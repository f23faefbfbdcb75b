// CUDA C++ for g++: the part of the language that our kernels use. runtime.cpp runs them.
//
// Warps are 32 lanes, and a warp's operations take the full mask only. A lane that has returned takes no part in them; what
// others read from it is poison: all bits set, a NaN. Rounding differs from a GPU's: no fused multiply-add, exact __expf.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define CUDA_ON_CPU
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static __attribute__((used))  // cpu_kernels.py finds these, and rewrites `extern __shared__`
#define CUDA_ON_CPU_UNCHECKED __attribute__((noinline, no_sanitize("thread", "alignment", "bounds")))

// ---- vectors --------------------------------------------------------------------------------------------------------
template <class T> struct alignas(2 * sizeof(T)) CudaVector2 { T x, y; };
template <class T> struct CudaVector3 { T x, y, z; };
template <class T> struct alignas(4 * sizeof(T)) CudaVector4 { T x, y, z, w; };
using uint2 = CudaVector2<unsigned>;
using int2 = CudaVector2<int>;
using float2 = CudaVector2<float>;
using uint3 = CudaVector3<unsigned>;
using uint4 = CudaVector4<unsigned>;
using int4 = CudaVector4<int>;
using float4 = CudaVector4<float>;
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- where a thread is, and how it meets others ---------------------------------------------------------------------
extern const uint3 threadIdx, blockIdx, blockDim, gridDim;  // constant for a thread; the runtime sets them when it switches
constexpr int warpSize = 32;

namespace cuda_on_cpu {
extern char dynamic_shared[];
// All live lanes of the warp give a value and get all 32, poison from those that have returned; good until the next call.
const uint64_t* exchange(const char* operation, unsigned mask, uint64_t value);
int lane();
struct Copy { void* to; const void* from; };  // 16 bytes, zeros from null
void put_off(Copy copy);                      // this thread's, in the group that it has not ended
void end_group();
bool next_copy(int pending, Copy* copy);  // the oldest, but of the `pending` newest groups that were ended
void check_atomic(const void* address, size_t bytes);
}  // namespace cuda_on_cpu

void __syncthreads();
int __syncthreads_count(int predicate);
void __syncwarp(unsigned mask = 0xffffffffu);
inline void __threadfence() { asm volatile("" ::: "memory"); }  // blocks run one after another
inline void __threadfence_block() { asm volatile("" ::: "memory"); }

template <class T> __forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  const uint64_t* all = cuda_on_cpu::exchange("a shuffle", mask, bits);
  memcpy(&value, all + (cuda_on_cpu::lane() & -width) + (source & (width - 1)), sizeof(T));
  return value;
}
template <class T> __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  return __shfl_sync(mask, value, cuda_on_cpu::lane() ^ lanes, width);
}
template <class T> __forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = warpSize) {
  const int lane = cuda_on_cpu::lane() & (width - 1), source = lane + (int)lanes;
  return __shfl_sync(mask, value, source < width ? source : lane, width);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* all = cuda_on_cpu::exchange("a vote", mask, predicate != 0);
  unsigned votes = 0;
  for (int lane = 0; lane < warpSize; lane++) votes |= (unsigned)(all[lane] == 1) << lane;
  return votes;
}
__forceinline__ unsigned __reduce_max_sync(unsigned mask, unsigned v) {
  for (int step = 16; step; step /= 2) {
    const unsigned other = __shfl_xor_sync(mask, v, step);
    if (other > v) v = other;
  }
  return v;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
__forceinline__ int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

template <class T> struct CudaSame { using type = T; };
template <class T> CUDA_ON_CPU_UNCHECKED T cuda_exchange_add(T* address, T value) {
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T> __forceinline__ T atomicAdd(T* address, typename CudaSame<T>::type value) {
  cuda_on_cpu::check_atomic(address, sizeof(T));
  return cuda_exchange_add(address, value);
}
template <class T> __forceinline__ T __ldg(const T* address) { return *address; }

// ---- numbers --------------------------------------------------------------------------------------------------------
template <class To, class From> inline To cuda_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
inline float __int_as_float(int i) { return cuda_bits<float>(i); }
inline float __uint_as_float(unsigned i) { return cuda_bits<float>(i); }
inline int __float_as_int(float f) { return cuda_bits<int>(f); }
inline unsigned __float_as_uint(float f) { return cuda_bits<unsigned>(f); }
inline float __expf(float x) { return expf(x); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }

// IEEE 754 binary16, to nearest even; works with denormal floats switched off, too.
inline float half_to_float(unsigned short h) {
  const unsigned sign = (h & 0x8000u) << 16, rest = h & 0x7fffu;
  if (rest < 0x400) return copysignf(rest * 0x1p-24f, __uint_as_float(sign));
  return __uint_as_float(sign | (rest << 13) + (rest < 0x7c00 ? 112u << 23 : 224u << 23));
}
inline unsigned short float_to_half(float f) {
  const unsigned bits = __float_as_uint(f), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return 0x7fff;           // any NaN
  if (rest >= 0x477ff000) return sign | 0x7c00;   // 65520 and more is infinity
  if (rest < 0x38800000) return sign | (unsigned)rintf(fabsf(f) * 0x1p24f);
  return sign | (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = (uint64_t)high << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; i++) result |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
inline unsigned multiply_halves(unsigned a, unsigned b) {
  return float_to_half(half_to_float(a & 0xffff) * half_to_float(b & 0xffff)) |
         (unsigned)float_to_half(half_to_float(a >> 16) * half_to_float(b >> 16)) << 16;
}
// PTX's cp.async, as late as it may be: a group of copies is made when its thread waits for it.
inline void copy_async(void* shared, const void* from, bool there) { cuda_on_cpu::put_off({shared, there ? from : nullptr}); }
inline void end_copies() { cuda_on_cpu::end_group(); }
template <int PENDING> inline void wait_for_copies() {
  for (cuda_on_cpu::Copy c; cuda_on_cpu::next_copy(PENDING, &c);)
    *(uint4*)c.to = c.from ? *(const uint4*)c.from : uint4{0, 0, 0, 0};
}
// PTX's mma.m16n8k16 with float16 operands and float32 sums.
inline void mma(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  using cuda_on_cpu::exchange;
  const char* name = "mma";
  uint64_t low[32], high[32], other[32];  // of all lanes: rows 0 to 7 of a, rows 8 to 15, b
  memcpy(low, exchange(name, 0xffffffffu, (uint64_t)a[2] << 32 | a[0]), sizeof(low));
  memcpy(high, exchange(name, 0xffffffffu, (uint64_t)a[3] << 32 | a[1]), sizeof(high));
  memcpy(other, exchange(name, 0xffffffffu, (uint64_t)b1 << 32 | b0), sizeof(other));
  const int group = cuda_on_cpu::lane() / 4, quad = cuda_on_cpu::lane() % 4;
  for (int k = 0; k < 16; k++) {  // lane k / 2 % 4 of a row has channel k, in the k / 8 * 2 + k % 2-th of its four halves
    const int lane = k / 2 % 4, shift = 16 * (k / 8 * 2 + k % 2);
    for (int i = 0; i < 4; i++) {
      const uint64_t w = (i < 2 ? low : high)[group * 4 + lane] >> shift, x = other[(quad * 2 + i % 2) * 4 + lane] >> shift;
      sum[i] += half_to_float(w & 0xffff) * half_to_float(x & 0xffff);
    }
  }
}
struct __half { unsigned short bits; };
struct alignas(4) __half2 { __half x, y; };
inline float __half2float(__half h) { return half_to_float(h.bits); }
inline __half __float2half(float f) { return {float_to_half(f)}; }
inline float2 __half22float2(__half2 h) { return {__half2float(h.x), __half2float(h.y)}; }
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half h) { return h.bits; }

// ---- kernels by name: what cuLaunchKernel knows of them -------------------------------------------------------------
namespace cuda_on_cpu {
template <class... A, size_t... I>
CUDA_ON_CPU_UNCHECKED void call(void (*kernel)(A...), void** parameters, std::index_sequence<I...>) {
  kernel(*(A*)parameters[I]...);
}
template <class... A> void call(void (*kernel)(A...), void** parameters) {
  call(kernel, parameters, std::index_sequence_for<A...>());
}
template <class... A> CUDA_ON_CPU_UNCHECKED int parameter_sizes(void (*)(A...), int* sizes) {
  const int all[] = {(int)sizeof(A)..., 0};
  memcpy(sizes, all, sizeof(all));
  return sizeof...(A);
}
}  // namespace cuda_on_cpu
