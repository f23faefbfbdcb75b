// One row through a transformer layer: what the kernels of this folder share. They are compiled as one text, in the order of
// SOURCES in compiler.py, and launched by decode.py and code_predictor.py.
//
// A decode step reads every active weight once and computes little, so each kernel is a matrix-vector product with
// whatever comes before it folded in: the RMSNorm of its input, the routing of a token, the rotation of queries and keys.
// A kernel starts while the one before it is at work (programmatic dependent launch) and asks for its first weights, which
// depend on nothing; only then it waits. Weights are taken as the checkpoint has them, float16, NVFP4 or FP8; the residual
// stream and all sums are float32. Compiled with HEAD_DIM and GROUP (query heads per key head) of the model.

typedef unsigned short half_bits;
constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffffu;
constexpr int BLOCK = 16;         // weights that share an NVFP4 scale; also what one thread takes of a row at a time
constexpr int PITCH = BLOCK + 4;  // floats from one block of a vector to the next in shared memory: no bank conflicts

#ifndef CUDA_ON_CPU  // the tests run this file on a CPU, with their own conversions
__device__ __forceinline__ float half_to_float(half_bits h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}
__device__ __forceinline__ half_bits float_to_half(float f) {
  half_bits h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}
#endif

// What the kernels before this one wrote is there when this returns, and the next kernel may start. GPUs before sm_90 run
// kernels one after the other anyway.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// A matrix [rows, K] in row order: NVFP4 (two codes a byte, the even column low) where `scale` is not null, else FP8 (E4M3)
// where `scale_2` is not, else float16.
struct Matrix {
  const void* data;
  const unsigned char* scale;  // FP8 E4M3, one for each BLOCK of a row
  const float* scale_2;        // one for the matrix; of a stack of experts, one each
};
enum Kind { HALVES, NVFP4, FP8 };
__device__ __forceinline__ Kind kind(const Matrix& m) { return m.scale ? NVFP4 : m.scale_2 ? FP8 : HALVES; }
// What a sum of products with codes is worth: the scale of the matrix, of which `matrix` is the place in a stack.
template <Kind W>
__device__ __forceinline__ float unit(const Matrix& m, int matrix = 0) {
  return W == HALVES ? 1.f : __ldg(m.scale_2 + matrix) * (W == FP8 ? 256.f : 1.f);  // see dot_bytes
}

__device__ __forceinline__ float warp_sum(float v) {
  for (int step = WARP / 2; step; step /= 2) v += __shfl_xor_sync(FULL, v, step);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (int step = WARP / 2; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(FULL, v, step));
  return v;
}
__device__ __forceinline__ int padded(int i) { return i / BLOCK * PITCH + i % BLOCK; }

// A float's bits, so mapped that they compare as integers; NaN is beyond infinity.
__device__ __forceinline__ unsigned order(float v) {
  const unsigned bits = __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// ---- vectors in shared memory -----------------------------------------------------------------------------------------
// A vector [K] on its way to shared memory, or its RMSNorm where `gamma` is not null; K is at most EACH * 4 * blockDim.x.
// `fetch_gamma` asks for what is constant, `fetch` for the vector itself, and `store`, which all threads of the block call,
// ends with a barrier.
struct Vector {
  static constexpr int EACH = 4;
  float4 x[EACH];
  uint2 gamma[EACH];

  __device__ __forceinline__ void fetch_gamma(const half_bits* from, int K) {
#pragma unroll
    for (int e = 0; e < EACH; e++)
      if (from && (threadIdx.x + e * blockDim.x) * 4 < K) gamma[e] = __ldg((const uint2*)from + threadIdx.x + e * blockDim.x);
  }
  __device__ __forceinline__ void fetch(const float* from, int K) {
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = threadIdx.x + e * blockDim.x;
      x[e] = i * 4 < K ? ((const float4*)from)[i] : make_float4(0, 0, 0, 0);
    }
  }
  __device__ __forceinline__ void store(bool norm, int K, float eps, float* xs) {
    __shared__ float partial[WARP];
    if (norm) {
      const int lane = threadIdx.x % WARP;
      float sum = 0;
#pragma unroll
      for (int e = 0; e < EACH; e++) sum += x[e].x * x[e].x + x[e].y * x[e].y + x[e].z * x[e].z + x[e].w * x[e].w;
      sum = warp_sum(sum);
      if (lane == 0) partial[threadIdx.x / WARP] = sum;
      __syncthreads();
      const float scale = rsqrtf(warp_sum(lane < (int)blockDim.x / WARP ? partial[lane] : 0) / K + eps);
#pragma unroll
      for (int e = 0; e < EACH; e++)
        if ((threadIdx.x + e * blockDim.x) * 4 < K) {
          x[e].x *= scale * half_to_float((half_bits)(gamma[e].x & 0xffffu));
          x[e].y *= scale * half_to_float((half_bits)(gamma[e].x >> 16));
          x[e].z *= scale * half_to_float((half_bits)(gamma[e].y & 0xffffu));
          x[e].w *= scale * half_to_float((half_bits)(gamma[e].y >> 16));
        }
    }
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = (threadIdx.x + e * blockDim.x) * 4;
      if (i < K) *(float4*)(xs + padded(i)) = x[e];
    }
    __syncthreads();
  }
};

__device__ __forceinline__ void load_block(const float* xs, int block, float (&x)[BLOCK]) {
  const float4* from = (const float4*)(xs + block * PITCH);
  for (int i = 0; i < BLOCK / 4; i++) {
    float4 v = from[i];
    x[4 * i] = v.x;
    x[4 * i + 1] = v.y;
    x[4 * i + 2] = v.z;
    x[4 * i + 3] = v.w;
  }
}

// ---- one block of a row ------------------------------------------------------------------------------------------------
// E2M1 bits placed in a float16 are worth 2^-14 of the code's value, and E4M3 bits 2^-8: conversions without tables.
__device__ __forceinline__ float scale_value(unsigned s) {
  return half_to_float((half_bits)(s << 7)) * 4194304.f;  // 2^(8 + 14); scales are positive
}
__device__ __forceinline__ float dot_codes(unsigned codes, const float* x) {  // eight codes
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    unsigned t = codes >> (4 * i);  // codes i and i + 4, in the low and the high half
    unsigned h = ((t & 0x00080008u) << 12) | ((t & 0x00070007u) << 9);
    sum += half_to_float((half_bits)(h & 0xffffu)) * x[i] + half_to_float((half_bits)(h >> 16)) * x[i + 4];
  }
  return sum;
}
__device__ __forceinline__ float dot_halves(uint4 v, const float* x) {  // eight weights
  unsigned w[4] = {v.x, v.y, v.z, v.w};
  float sum = 0;
  for (int i = 0; i < 4; i++)
    sum += half_to_float((half_bits)(w[i] & 0xffffu)) * x[2 * i] + half_to_float((half_bits)(w[i] >> 16)) * x[2 * i + 1];
  return sum;
}

__device__ __forceinline__ float dot_bytes(unsigned codes, const float* x) {  // four E4M3 codes, worth 2^-8 of their values
  float sum = 0;
  for (int i = 0; i < 2; i++) {
    unsigned t = codes >> (8 * i);  // codes i and i + 2, in the low and the high half
    unsigned h = ((t & 0x00800080u) << 8) | ((t & 0x007f007fu) << 7);
    sum += half_to_float((half_bits)(h & 0xffffu)) * x[i] + half_to_float((half_bits)(h >> 16)) * x[i + 2];
  }
  return sum;
}

// ---- rows ----------------------------------------------------------------------------------------------------------------
// This lane's next A blocks of a row, `first` and every WARP-th after it, on their way from memory.
template <Kind W, int A>
struct Ahead;

template <int A>
struct Ahead<NVFP4, A> {
  uint2 codes[A];
  unsigned char scale[A];

  __device__ __forceinline__ void fetch(const Matrix& m, size_t block, int a) {
    codes[a] = __ldg((const uint2*)m.data + block);
    scale[a] = __ldg(m.scale + block);
  }
  __device__ __forceinline__ float dot(int a, const float (&x)[BLOCK]) const {
    return scale_value(scale[a]) * (dot_codes(codes[a].x, x) + dot_codes(codes[a].y, x + 8));
  }
};

template <int A>
struct Ahead<HALVES, A> {
  uint4 low[A], high[A];

  __device__ __forceinline__ void fetch(const Matrix& m, size_t block, int a) {
    low[a] = __ldg((const uint4*)m.data + block * 2);
    high[a] = __ldg((const uint4*)m.data + block * 2 + 1);
  }
  __device__ __forceinline__ float dot(int a, const float (&x)[BLOCK]) const {
    return dot_halves(low[a], x) + dot_halves(high[a], x + 8);
  }
};

template <int A>
struct Ahead<FP8, A> {
  uint4 codes[A];

  __device__ __forceinline__ void fetch(const Matrix& m, size_t block, int a) { codes[a] = __ldg((const uint4*)m.data + block); }
  __device__ __forceinline__ float dot(int a, const float (&x)[BLOCK]) const {
    return dot_bytes(codes[a].x, x) + dot_bytes(codes[a].y, x + 4) + dot_bytes(codes[a].z, x + 8) + dot_bytes(codes[a].w, x + 12);
  }
};

template <Kind W, int A>
__device__ __forceinline__ void fetch_row(Ahead<W, A>& w, const Matrix& m, size_t row, int blocks, int first) {
#pragma unroll
  for (int a = 0; a < A; a++)
    if (first + a * WARP < blocks) w.fetch(m, row * blocks + first + a * WARP, a);
}

// This lane's share of a product of `blocks` blocks with xs. `w` has fetched the first ones; `fetch(first)` fetches the next.
template <Kind W, int A, class Fetch>
__device__ __forceinline__ float dot_blocks(Ahead<W, A>& w, int blocks, const float* xs, Fetch fetch) {
  float sum = 0;
  for (int first = threadIdx.x % WARP; first < blocks; first += A * WARP) {
    if (first >= WARP) fetch(first);
#pragma unroll
    for (int a = 0; a < A; a++)
      if (first + a * WARP < blocks) {
        float x[BLOCK];
        load_block(xs, first + a * WARP, x);
        sum += w.dot(a, x);
      }
  }
  return sum;
}

template <Kind W, int A>
__device__ __forceinline__ float dot_row(Ahead<W, A>& w, const Matrix& m, size_t row, int blocks, const float* xs) {
  return dot_blocks(w, blocks, xs, [&](int first) { fetch_row(w, m, row, blocks, first); });
}
