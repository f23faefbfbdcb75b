// Many rows through a transformer layer: what the kernels of this folder share, on top of decode/rows.cu.
//
// A tile is 16 rows of a matrix for each warp times TOKENS rows of activations, on tensor cores. Weights go straight from
// memory into the registers that `mma` takes them from: NVFP4 becomes float16 on the way, exactly. That works because the
// order of channels in a sum is free: a lane takes a block of 16 neighbours, and activations lie in "pair order", in which
// two neighbours are what one shift of packed codes gives.

constexpr int TOKENS = 32;             // rows of activations in a tile
constexpr int DEPTH = 64;              // channels at a time: a BLOCK for each of the four lanes that share a row
constexpr int TILE_PITCH = DEPTH + 8;  // halves from row to row in shared memory: no bank conflicts
constexpr int STAGES = 4;              // tiles of activations in shared memory: one in use, the others on their way
constexpr int TILE_HALVES = STAGES * TOKENS * TILE_PITCH;
constexpr int TILE_WARPS = 4;
constexpr int OUTPUTS = 16 * TILE_WARPS;  // rows of the matrix for each thread block
constexpr float CODE_UNIT = 256;          // see Weights<true>

#ifndef CUDA_ON_CPU
// sum [16, 8] += a [16, 16] b [16, 8]; which lane holds what is in the PTX manual under mma.m16n8k16.
__device__ __forceinline__ void mma(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ unsigned multiply_halves(unsigned a, unsigned b) {
  unsigned product;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
  return product;
}
// 16 bytes of device memory to shared memory, or zeros where not `in_bounds`. Each call of `end_copies` closes a group of copies;
// `wait_for_copies` returns when all but the PENDING newest groups are made. Other threads see them after a barrier.
__device__ __forceinline__ void copy_async(void* shared, const void* from, bool in_bounds) {
  const unsigned to = (unsigned)__cvta_generic_to_shared(shared), size = in_bounds ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(size) : "memory");
}
__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
#endif

// The largest float16 instead of infinity: checkpoints are trained in bfloat16, whose range is wider.
__device__ __forceinline__ float finite(float v) { return fminf(fmaxf(v, -65504.f), 65504.f); }
__device__ __forceinline__ half_bits activation(float v) { return float_to_half(finite(v)); }
__device__ __forceinline__ unsigned activations(float low, float high) {
  return activation(low) | (unsigned)activation(high) << 16;
}

// Eight neighbouring halves in pair order: 0 4 1 5 2 6 3 7.
__device__ __forceinline__ uint4 pair_order(uint4 v) {
  return make_uint4(__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632), __byte_perm(v.y, v.w, 0x5410),
                    __byte_perm(v.y, v.w, 0x7632));
}
__device__ __forceinline__ int pair_position(int i) { return i / 8 * 8 + i % 4 * 2 + i % 8 / 4; }

// A lane's BLOCK of one row, on its way from memory, and as eight pairs of halves.
template <bool FP4>
struct Weights;

template <>
struct Weights<true> {
  uint2 codes;
  unsigned scale;

  __device__ __forceinline__ void fetch(const Matrix& m, size_t block) {
    codes = __ldg((const uint2*)m.data + block);
    scale = __ldg(m.scale + block);
  }
  __device__ __forceinline__ void clear() { codes = make_uint2(0, 0), scale = 0; }
  // In units of 1 / CODE_UNIT: E2M1 bits in a float16 are worth 2^-14, E4M3 bits 2^-8, and the scale is taken times 2^14.
  // Six significant bits: the product is exact.
  __device__ __forceinline__ void pairs(unsigned (&h)[8]) const {
    const unsigned s = multiply_halves(scale * 0x00800080u, 0x74007400u);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const unsigned t = (i < 4 ? codes.x : codes.y) >> (4 * (i % 4));
      h[i] = multiply_halves((t & 0x00080008u) << 12 | (t & 0x00070007u) << 9, s);
    }
  }
};

template <>
struct Weights<false> {
  uint4 low, high;

  __device__ __forceinline__ void fetch(const Matrix& m, size_t block) {
    low = __ldg((const uint4*)m.data + block * 2);
    high = __ldg((const uint4*)m.data + block * 2 + 1);
  }
  __device__ __forceinline__ void clear() { low = high = make_uint4(0, 0, 0, 0); }
  __device__ __forceinline__ void pairs(unsigned (&h)[8]) const {
    const uint4 a = pair_order(low), b = pair_order(high);
    h[0] = a.x;
    h[1] = a.y;
    h[2] = a.z;
    h[3] = a.w;
    h[4] = b.x;
    h[5] = b.y;
    h[6] = b.z;
    h[7] = b.w;
  }
};

// The first of the two rows of a matrix that this lane looks after; the other one is 8 further on.
__device__ __forceinline__ int first_output() {
  return blockIdx.x * OUTPUTS + threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
}

struct Row {  // of a matrix; `in_bounds` is false beyond its end
  Matrix matrix;
  size_t row;
  bool in_bounds;
};

// The rows of activations that this thread brings to shared memory, pointers to [K] halves in pair order or null.
struct Tokens {
  static constexpr int EACH = TOKENS * DEPTH / 8 / (WARP * TILE_WARPS), STRIDE = WARP * TILE_WARPS / (DEPTH / 8);
  const half_bits* x[EACH];

  template <class Find>
  __device__ __forceinline__ void find(int tokens, Find row_of) {
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int token = threadIdx.x / (DEPTH / 8) + e * STRIDE;
      x[e] = token < tokens ? row_of(token) : nullptr;
    }
  }
};

// sum [M][TOKENS / 8] += rows w[m][0] and w[m][1] (this lane's two of its warp's 16) times up to TOKENS activations. Weights
// are asked for first; `ready` then finds the activations. All threads of the block call it, once; `tiles` is shared memory for it.
template <bool FP4, int M, class Ready>
__device__ __forceinline__ void gemm_tile(const Row (&w)[M][2], int K, int tokens, float (&sum)[M][TOKENS / 8][4],
                                              Ready ready, half_bits* tiles) {
  constexpr int A = FP4 ? 5 - M : 2 / M;  // steps of weights on their way
  const int lane = threadIdx.x % WARP, group = lane / 4, quad = lane % 4;
  const int blocks = K / BLOCK, steps = (K + DEPTH - 1) / DEPTH;
  Weights<FP4> ahead[A][M][2];
  Tokens from;
  auto fetch = [&](int step, Weights<FP4>(&to)[M][2]) {
    const int block = step * 4 + quad;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
      for (int r = 0; r < 2; r++)
        if (block < blocks && w[m][r].in_bounds) to[m][r].fetch(w[m][r].matrix, w[m][r].row * blocks + block);
        else to[m][r].clear();
  };
  const int column = threadIdx.x % (DEPTH / 8) * 8;
  auto copy_tokens = [&](int step) {
    half_bits* to = tiles + step % STAGES * TOKENS * TILE_PITCH + threadIdx.x / (DEPTH / 8) * TILE_PITCH + column;
#pragma unroll
    for (int e = 0; e < Tokens::EACH; e++)
      if (step < steps) {
        const bool in_bounds = from.x[e] && step * DEPTH + column < K;
        const void* x = in_bounds ? from.x[e] + step * DEPTH + column : w[0][0].matrix.data;
        copy_async(to + e * Tokens::STRIDE * TILE_PITCH, x, in_bounds);
      }
    end_copies();
  };
#pragma unroll
  for (int a = 0; a < A; a++) fetch(a, ahead[a]);
  ready(from);
  for (int step = 0; step < STAGES - 1; step++) copy_tokens(step);
  for (int first = 0; first < steps; first += A) {
#pragma unroll
    for (int a = 0; a < A; a++) {
      const int step = first + a;
      if (step < steps) {
        wait_for_copies<STAGES - 2>();
        __syncthreads();  // what this step reads is there, and nobody reads what is overwritten now
        copy_tokens(step + STAGES - 1);
        unsigned h[M][2][8];
#pragma unroll
        for (int m = 0; m < M; m++) ahead[a][m][0].pairs(h[m][0]), ahead[a][m][1].pairs(h[m][1]);
        fetch(step + A, ahead[a]);
#pragma unroll
        for (int n = 0; n < TOKENS / 8; n++)
          if (n * 8 < tokens) {
            const uint4* x = (const uint4*)(tiles + (step % STAGES * TOKENS + n * 8 + group) * TILE_PITCH + quad * BLOCK);
            const uint4 low = x[0], high = x[1];
            const unsigned b[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
            for (int k = 0; k < 4; k++)
#pragma unroll
              for (int m = 0; m < M; m++) {
                const unsigned a4[4] = {h[m][0][2 * k], h[m][1][2 * k], h[m][0][2 * k + 1], h[m][1][2 * k + 1]};
                mma(sum[m][n], a4, b[2 * k], b[2 * k + 1]);
              }
          }
      }
    }
  }
}

// Calls store(token, r, value of each of the M matrices) for what this lane holds of a tile: rows r = 0 and 1 of its two.
template <int M, class Store>
__device__ __forceinline__ void store_tile(int tokens, const float (&sum)[M][TOKENS / 8][4], Store store) {
#pragma unroll
  for (int n = 0; n < TOKENS / 8; n++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int token = n * 8 + threadIdx.x % 4 * 2 + i % 2;
      float value[M];
#pragma unroll
      for (int m = 0; m < M; m++) value[m] = sum[m][n][i];
      if (token < tokens) store(token, i / 2, value);
    }
}
