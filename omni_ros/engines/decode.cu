// One row through a transformer layer: the kernels of cuda_decoder.py and cuda_code_predictor.py.
//
// A decode step reads every active weight once and computes little, so each kernel is a matrix-vector product with
// whatever comes before it folded in: the RMSNorm of its input, the routing of a token, the rotation of queries and keys.
// A kernel starts while the one before it is at work (programmatic dependent launch) and asks for its first weights, which
// depend on nothing; only then it waits. Weights are taken as the checkpoint has them, float16 or NVFP4; the residual
// stream and all sums are float32. Compiled with HEAD_DIM and GROUP (query heads per key head) of the model.

typedef unsigned short half_bits;
constexpr int WARP = 32;
constexpr unsigned FULL = 0xffffffffu;
constexpr int BLOCK = 16;         // weights that share an NVFP4 scale; also what one thread takes of a row at a time
constexpr int PITCH = BLOCK + 4;  // floats from one block of a vector to the next in shared memory: no bank conflicts
constexpr int TILE = 32;          // cache rows that attention takes at a time, one per lane
constexpr int MAX_EXPERTS = 256, MAX_SLOTS = 16;

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

// A matrix [rows, K] in row order: float16, or NVFP4 (two codes a byte, the even column low) where `scale` is not null.
struct Matrix {
  const void* data;
  const unsigned char* scale;  // FP8 E4M3, one for each BLOCK of a row
  const float* scale_2;        // one for the matrix; of a stack of experts, one each
};

__device__ __forceinline__ float warp_sum(float v) {
  for (int step = WARP / 2; step; step /= 2) v += __shfl_xor_sync(FULL, v, step);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (int step = WARP / 2; step; step /= 2) v = fmaxf(v, __shfl_xor_sync(FULL, v, step));
  return v;
}
__device__ __forceinline__ int padded(int i) { return i / BLOCK * PITCH + i % BLOCK; }

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
          x[e].x *= scale * half_to_float((half_bits)(gamma[e].x & 0xffffu)), x[e].y *= scale * half_to_float((half_bits)(gamma[e].x >> 16));
          x[e].z *= scale * half_to_float((half_bits)(gamma[e].y & 0xffffu)), x[e].w *= scale * half_to_float((half_bits)(gamma[e].y >> 16));
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
    x[4 * i] = v.x, x[4 * i + 1] = v.y, x[4 * i + 2] = v.z, x[4 * i + 3] = v.w;
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

// ---- rows ----------------------------------------------------------------------------------------------------------------
// This lane's next A blocks of a row, `first` and every WARP-th after it, on their way from memory.
template <bool FP4, int A>
struct Ahead;

template <int A>
struct Ahead<true, A> {
  uint2 codes[A];
  unsigned char scale[A];

  __device__ __forceinline__ void fetch(const Matrix& m, size_t block, int a) {
    codes[a] = __ldg((const uint2*)m.data + block), scale[a] = __ldg(m.scale + block);
  }
  __device__ __forceinline__ float dot(int a, const float (&x)[BLOCK]) const {
    return scale_value(scale[a]) * (dot_codes(codes[a].x, x) + dot_codes(codes[a].y, x + 8));
  }
};

template <int A>
struct Ahead<false, A> {
  uint4 low[A], high[A];

  __device__ __forceinline__ void fetch(const Matrix& m, size_t block, int a) {
    low[a] = __ldg((const uint4*)m.data + block * 2), high[a] = __ldg((const uint4*)m.data + block * 2 + 1);
  }
  __device__ __forceinline__ float dot(int a, const float (&x)[BLOCK]) const {
    return dot_halves(low[a], x) + dot_halves(high[a], x + 8);
  }
};

template <bool FP4, int A>
__device__ __forceinline__ void fetch_row(Ahead<FP4, A>& w, const Matrix& m, size_t row, int blocks, int first) {
#pragma unroll
  for (int a = 0; a < A; a++)
    if (first + a * WARP < blocks) w.fetch(m, row * blocks + first + a * WARP, a);
}

// This lane's share of a row times xs, whose first blocks `w` has fetched.
template <bool FP4, int A>
__device__ __forceinline__ float dot_row(Ahead<FP4, A>& w, const Matrix& m, size_t row, int blocks, const float* xs) {
  float sum = 0;
  for (int first = threadIdx.x % WARP; first < blocks; first += A * WARP) {
    if (first >= WARP) fetch_row(w, m, row, blocks, first);
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

struct Stacked {  // up to three matrices of K columns, whose products follow each other: queries, keys and values
  Matrix matrix[3];
  int rows[3];
};

struct Projection {
  const float* x;
  const half_bits* gamma;  // null: x as it is
  float eps;
  int K;
  float* out;
  int add;        // to what `out` holds
  float* normed;  // null, or [K]: receives the normed x
};

template <bool FP4>
__device__ __forceinline__ void project_rows(const Stacked& m, const Projection& p, float* xs) {
  const int warps = blockDim.x / WARP, lane = threadIdx.x % WARP, blocks = p.K / BLOCK;
  const int total = m.rows[0] + m.rows[1] + m.rows[2];
  int row = blockIdx.x * warps + threadIdx.x / WARP, local;
  Matrix w;
  float scale_2;
  Ahead<FP4, FP4 ? 8 : 4> ahead;
  auto fetch = [&] {
    w = m.matrix[0], local = row;
    if (local >= m.rows[0]) {
      local -= m.rows[0], w = m.matrix[1];
      if (local >= m.rows[1]) local -= m.rows[1], w = m.matrix[2];
    }
    scale_2 = FP4 ? __ldg(w.scale_2) : 1;
    fetch_row(ahead, w, local, blocks, lane);
  };
  if (row < total) fetch();
  Vector x;
  x.fetch_gamma(p.gamma, p.K);
  wait_for_previous();
  x.fetch(p.x, p.K);
  x.store(p.gamma, p.K, p.eps, xs);
  if (p.normed && blockIdx.x == 0)
    for (int i = threadIdx.x; i < p.K; i += blockDim.x) p.normed[i] = xs[padded(i)];
  while (row < total) {
    const float before = p.add ? p.out[row] : 0, sum = warp_sum(dot_row(ahead, w, local, blocks, xs));
    if (lane == 0) p.out[row] = before + sum * scale_2;
    row += gridDim.x * warps;
    if (row < total) fetch();
  }
}

// out [sum rows] = matrices, all NVFP4 or all float16, times x [K] or its norm.
extern "C" __global__ void __launch_bounds__(256, 3) project(Stacked m, Projection p) {
  extern __shared__ float4 shared[];
  if (m.matrix[0].scale) project_rows<true>(m, p, (float*)shared);
  else project_rows<false>(m, p, (float*)shared);
}

// ---- attention -----------------------------------------------------------------------------------------------------------
constexpr int PER_LANE = HEAD_DIM / WARP;                   // channels, neighbours
constexpr int PAIRS = (HEAD_DIM / 2 + WARP - 1) / WARP;      // rotated pairs of channels per lane

__device__ __forceinline__ void load_channels(const half_bits* from, float (&v)[PER_LANE]) {
  if constexpr (PER_LANE == 4) {
    const uint2 w = *(const uint2*)from;
    v[0] = half_to_float((half_bits)(w.x & 0xffffu)), v[1] = half_to_float((half_bits)(w.x >> 16));
    v[2] = half_to_float((half_bits)(w.y & 0xffffu)), v[3] = half_to_float((half_bits)(w.y >> 16));
  } else {
    for (int i = 0; i < PER_LANE; i++) v[i] = half_to_float(from[i]);
  }
}
__device__ __forceinline__ void load_channels(const float* from, float (&v)[PER_LANE]) {
  if constexpr (PER_LANE == 4) {
    const float4 w = *(const float4*)from;
    v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
  } else {
    for (int i = 0; i < PER_LANE; i++) v[i] = from[i];
  }
}

struct Rotary {
  const half_bits *q_norm, *k_norm;  // [HEAD_DIM]
  float eps;
  const float* turn;  // [HEAD_DIM]: the cosines of this row's HEAD_DIM / 2 angles, then the sines
};

// This warp's head [HEAD_DIM]: RMSNorm with `gamma`, then rotated; channel i turns with channel i + HEAD_DIM / 2.
__device__ __forceinline__ void norm_rotate(const float* head, const half_bits* gamma, const Rotary& r, float* out) {
  const int lane = threadIdx.x % WARP;
  float low[PAIRS], high[PAIRS], cosine[PAIRS], sine[PAIRS], gamma_low[PAIRS], gamma_high[PAIRS], sum = 0;
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int i = lane + j * WARP < HEAD_DIM / 2 ? lane + j * WARP : 0;
    low[j] = head[i], high[j] = head[i + HEAD_DIM / 2];
    cosine[j] = r.turn[i], sine[j] = r.turn[i + HEAD_DIM / 2];
    gamma_low[j] = half_to_float(__ldg(gamma + i)), gamma_high[j] = half_to_float(__ldg(gamma + i + HEAD_DIM / 2));
    if (lane + j * WARP < HEAD_DIM / 2) sum += low[j] * low[j] + high[j] * high[j];
  }
  const float scale = rsqrtf(warp_sum(sum) / HEAD_DIM + r.eps);
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int i = lane + j * WARP;
    const float a = low[j] * scale * gamma_low[j], b = high[j] * scale * gamma_high[j];
    if (i < HEAD_DIM / 2) out[i] = a * cosine[j] - b * sine[j], out[i + HEAD_DIM / 2] = b * cosine[j] + a * sine[j];
  }
}

// One query row against the cache [kv_heads, capacity, HEAD_DIM], after appending this row's key and value to it.
// qkv [(GROUP kv_heads + 2 kv_heads) HEAD_DIM] -> out [GROUP kv_heads HEAD_DIM]. Block (h, s) does the tiles s, s + splits, ...
// for the GROUP query heads of key head h, a warp for each; the last block of a head puts the splits, at most WARP, together
// (Flash-Decoding). `partial` [kv_heads, splits, GROUP, HEAD_DIM], then as many pairs of a maximum and a sum; `arrived`
// [kv_heads] is zero before and after. No kernel before it writes `past` or the rows before this one: they are read at once.
extern "C" __global__ void __launch_bounds__(WARP * GROUP) attend(const float* qkv, Rotary rotary, half_bits* keys,
                                                                   half_bits* values, const int* past, int capacity,
                                                                   float* partial, int* arrived, float* out) {
  constexpr int ROW = HEAD_DIM + 8;  // halves from row to row of the key tile
  __shared__ __align__(16) float q[GROUP][HEAD_DIM], new_key[HEAD_DIM];
  __shared__ __align__(16) half_bits key_tile[TILE * ROW], value_tile[TILE * HEAD_DIM];
  __shared__ int last;
  const int kv_heads = gridDim.x, head = blockIdx.x, splits = gridDim.y, split = blockIdx.y;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int length = *past + 1, tiles = (length + TILE - 1) / TILE, active = tiles < splits ? tiles : splits;
  if (split >= active) return;
  keys += (size_t)head * capacity * HEAD_DIM, values += (size_t)head * capacity * HEAD_DIM;
  constexpr int COLUMNS = HEAD_DIM / 8, EACH = TILE * COLUMNS / (WARP * GROUP);  // what a thread loads of a tile
  static_assert(EACH * WARP * GROUP == TILE * COLUMNS, "a tile is shared evenly");
  uint4 key_part[EACH], value_part[EACH];
  auto fetch_tile = [&](int tile) {  // but the new row, which may not be there yet
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = threadIdx.x + e * WARP * GROUP, row = tile * TILE + i / COLUMNS;
      const size_t at = (size_t)row * HEAD_DIM + i % COLUMNS * 8;
      const bool there = row < length - 1;
      key_part[e] = there ? *(const uint4*)(keys + at) : make_uint4(0, 0, 0, 0);
      value_part[e] = there ? *(const uint4*)(values + at) : make_uint4(0, 0, 0, 0);
    }
  };
  auto store_tile = [&] {
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = threadIdx.x + e * WARP * GROUP, row = i / COLUMNS, column = i % COLUMNS * 8;
      *(uint4*)(key_tile + row * ROW + column) = key_part[e];
      *(uint4*)(value_tile + row * HEAD_DIM + column) = value_part[e];
    }
  };
  fetch_tile(split);
  wait_for_previous();
  const float *key = qkv + (GROUP * kv_heads + head) * HEAD_DIM, *value = key + kv_heads * HEAD_DIM;
  norm_rotate(qkv + (head * GROUP + warp) * HEAD_DIM, rotary.q_norm, rotary, q[warp]);
  const bool owner = (tiles - 1) % splits == split;  // of the tile with the new row
  if (owner && warp == GROUP - 1) norm_rotate(key, rotary.k_norm, rotary, new_key);
  auto add_new_row = [&] {
    for (int i = threadIdx.x; i < HEAD_DIM; i += blockDim.x) {
      const half_bits k = float_to_half(new_key[i]), v = float_to_half(value[i]);
      keys[(size_t)(length - 1) * HEAD_DIM + i] = k, values[(size_t)(length - 1) * HEAD_DIM + i] = v;
      key_tile[(length - 1) % TILE * ROW + i] = k, value_tile[(length - 1) % TILE * HEAD_DIM + i] = v;
    }
  };
  const float root = rsqrtf((float)HEAD_DIM);
  float best = -1e30f, total = 0, sum[PER_LANE], v[PER_LANE];
  for (int i = 0; i < PER_LANE; i++) sum[i] = 0;
  for (int tile = split; tile < tiles; tile += splits) {
    const int rows = length - tile * TILE < TILE ? length - tile * TILE : TILE;
    if (tile != split) {
      __syncthreads();
      fetch_tile(tile);
    }
    store_tile();
    __syncthreads();
    if (tile == tiles - 1) {
      add_new_row();
      __syncthreads();
    }
    float score = 0;
#pragma unroll
    for (int i = 0; i < HEAD_DIM; i += 8) score += dot_halves(*(const uint4*)(key_tile + lane * ROW + i), q[warp] + i);
    score = lane < rows ? score * root : -1e30f;
    const float better = fmaxf(best, warp_max(score)), old = __expf(best - better), weight = __expf(score - better);
    total = total * old + warp_sum(weight);
    best = better;
    for (int i = 0; i < PER_LANE; i++) sum[i] *= old;
#pragma unroll
    for (int row = 0; row < TILE; row++) {  // weights beyond `rows` are zero
      const float w = __shfl_sync(FULL, weight, row);
      load_channels(value_tile + row * HEAD_DIM + lane * PER_LANE, v);
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) sum[i] += w * v[i];
    }
  }
  out += (head * GROUP + warp) * HEAD_DIM + lane * PER_LANE;
  if (active == 1) {
    for (int i = 0; i < PER_LANE; i++) out[i] = sum[i] / total;
    return;
  }
  float* stats = partial + (size_t)kv_heads * splits * GROUP * HEAD_DIM;
  const int mine = (head * splits + split) * GROUP + warp;
  for (int i = 0; i < PER_LANE; i++) partial[mine * HEAD_DIM + lane * PER_LANE + i] = sum[i];
  if (lane == 0) stats[2 * mine] = best, stats[2 * mine + 1] = total;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived + head, 1) == active - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int theirs = (head * splits + lane) * GROUP + warp;  // of the split that this lane looks at
  const float their_best = lane < active ? stats[2 * theirs] : -1e30f, their_total = lane < active ? stats[2 * theirs + 1] : 0;
  const float scale = __expf(their_best - warp_max(their_best));
  total = warp_sum(scale * their_total);
  for (int i = 0; i < PER_LANE; i++) sum[i] = 0;
#pragma unroll
  for (int s = 0; s < WARP; s++) {
    const float w = __shfl_sync(FULL, scale, s);
    if (s < active) {
      load_channels(partial + ((head * splits + s) * GROUP + warp) * HEAD_DIM + lane * PER_LANE, v);
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) sum[i] += w * v[i];
    }
  }
  for (int i = 0; i < PER_LANE; i++) out[i] = sum[i] / total;
  if (threadIdx.x == 0) arrived[head] = 0;
}

// ---- feed-forward --------------------------------------------------------------------------------------------------------
struct SwiGLU {
  Matrix gate, up, down;  // [inner, hidden] twice, [hidden, inner]; stacks of them for experts
  int inner;
};
struct FeedForward {
  SwiGLU expert, shared;  // `experts` may be 0: a dense layer is a shared expert alone
  int experts, top_k, normalize;
  const float* logits;  // [experts + gated]; the last, where `gated`, is the shared expert's gate
  int* ids;             // [top_k], what gate_up chose
  float* weights;       // [top_k], times the scale_2 of their `down`
  int gated, hidden;
};

// A float's bits, so turned that they compare as integers; NaN is beyond infinity.
__device__ __forceinline__ unsigned order(float v) {
  const unsigned bits = __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The expert with the `slot`-th largest logit. Each warp finds it for itself; the one that is told to `publish` leaves all
// top_k and their weights, a softmax over the logits, for `down`.
__device__ __forceinline__ int route(const FeedForward& f, int slot, bool publish) {
  constexpr int EACH = MAX_EXPERTS / WARP;
  const int lane = threadIdx.x % WARP;
  float logit[EACH];
  unsigned key[EACH];
  int id = 0, mine = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    logit[i] = lane + i * WARP < f.experts ? f.logits[lane + i * WARP] : -1e30f;
    key[i] = lane + i * WARP < f.experts ? order(logit[i]) : 0;
  }
  for (int k = 0; k < (publish ? f.top_k : slot + 1); k++) {
    unsigned top = 0;
    int at = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (key[i] > top) top = key[i], at = i;
    const unsigned best = __reduce_max_sync(FULL, top);
    const int winner = __ffs(__ballot_sync(FULL, top == best)) - 1;
    const int expert = __shfl_sync(FULL, at, winner) * WARP + winner;
    if (lane == winner) {
#pragma unroll
      for (int i = 0; i < EACH; i++)
        if (i == at) key[i] = 0;
    }
    if (k == slot) id = expert;
    if (k == lane) mine = expert;
  }
  if (publish) {
    const bool chosen = lane < f.top_k;
    const float own = chosen ? f.logits[mine] : -1e30f, best = warp_max(own);
    const float weight = chosen ? __expf(own - best) : 0;
    float total = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) total += __expf(logit[i] - best);
    total = warp_sum(f.normalize ? weight : total);
    if (chosen) f.ids[lane] = mine, f.weights[lane] = weight / total * (f.expert.down.scale ? __ldg(f.expert.down.scale_2 + mine) : 1);
  }
  return id;
}

template <bool FP4>
__device__ __forceinline__ void gate_up_rows(const FeedForward& f, const SwiGLU& e, bool routed, const float* x,
                                             const half_bits* gamma, float eps, float* inner, float* xs) {
  const int warps = blockDim.x / WARP, lane = threadIdx.x % WARP, blocks = f.hidden / BLOCK;
  int row = blockIdx.x * warps + threadIdx.x / WARP, id = 0;
  Ahead<FP4, FP4 ? 4 : 2> g, u;
  Vector v;
  v.fetch_gamma(gamma, f.hidden);
  if (routed) {
    wait_for_previous();
    v.fetch(x, f.hidden);
    id = route(f, blockIdx.y, blockIdx.y == 0 && row == 0);
  }
  const size_t start = (size_t)id * e.inner;
  if (row < e.inner) fetch_row(g, e.gate, start + row, blocks, lane), fetch_row(u, e.up, start + row, blocks, lane);
  const float gate_2 = FP4 ? __ldg(e.gate.scale_2 + id) : 1, up_2 = FP4 ? __ldg(e.up.scale_2 + id) : 1;
  if (!routed) {
    wait_for_previous();
    v.fetch(x, f.hidden);
  }
  v.store(true, f.hidden, eps, xs);
  while (row < e.inner) {
    float a = dot_row(g, e.gate, start + row, blocks, xs), b = dot_row(u, e.up, start + row, blocks, xs);
    const int next = row + gridDim.x * warps;
    if (next < e.inner) fetch_row(g, e.gate, start + next, blocks, lane), fetch_row(u, e.up, start + next, blocks, lane);
    a = warp_sum(a) * gate_2, b = warp_sum(b) * up_2;
    if (lane == 0) inner[row] = a / (1 + __expf(-a)) * b;
    row = next;
  }
}

// inner [slots, pitch] = silu(gate x) * up x of block row blockIdx.y's expert; the slot after the experts is the shared one.
extern "C" __global__ void __launch_bounds__(256, 3) gate_up(FeedForward f, const float* x, const half_bits* gamma, float eps,
                                                             float* inner, int pitch) {
  extern __shared__ float4 shared[];
  const bool routed = (int)blockIdx.y < f.top_k;
  const SwiGLU& e = routed ? f.expert : f.shared;
  inner += blockIdx.y * pitch;
  if (e.gate.scale) gate_up_rows<true>(f, e, routed, x, gamma, eps, inner, (float*)shared);
  else gate_up_rows<false>(f, e, routed, x, gamma, eps, inner, (float*)shared);
}

// hs = inner times w; K and pitches are multiples of 4.
__device__ __forceinline__ void load_scaled(const float* inner, int K, float w, float* hs, int first, int step) {
  for (int i = first; i < K; i += step) {
    float4 v = *(const float4*)(inner + i);
    v.x *= w, v.y *= w, v.z *= w, v.w *= w;
    *(float4*)(hs + padded(i)) = v;
  }
}

template <bool FP4>
__device__ __forceinline__ float down_experts(const FeedForward& f, int row, const float* inner, int pitch, float* hs) {
  constexpr int A = FP4 ? 12 : 4;
  __shared__ int ids[MAX_SLOTS];
  const int lane = threadIdx.x % WARP, blocks = f.expert.inner / BLOCK, all = f.top_k * blocks;
  Ahead<FP4, A> e;
  auto fetch = [&](int first) {
#pragma unroll
    for (int a = 0; a < A; a++) {
      const int block = first + a * WARP;
      if (block < all) e.fetch(f.expert.down, ((size_t)ids[block / blocks] * f.hidden + row) * blocks + block % blocks, a);
    }
  };
  if ((int)threadIdx.x < f.top_k) ids[threadIdx.x] = f.ids[threadIdx.x];
  __syncthreads();
  if (row < f.hidden) fetch(lane);
  for (int slot = threadIdx.x / WARP; slot < f.top_k; slot += blockDim.x / WARP)
    load_scaled(inner + slot * pitch, f.expert.inner, f.weights[slot], hs + padded(slot * f.expert.inner), lane * 4, WARP * 4);
  __syncthreads();
  float sum = 0;
  if (row < f.hidden)
    for (int first = lane; first < all; first += A * WARP) {
      if (first >= WARP) fetch(first);
#pragma unroll
      for (int a = 0; a < A; a++)
        if (first + a * WARP < all) {
          float h[BLOCK];
          load_block(hs, first + a * WARP, h);
          sum += e.dot(a, h);
        }
    }
  return sum;
}

template <bool FP4>
__device__ __forceinline__ float down_shared(const FeedForward& f, int row, const float* inner, float* hs) {
  const Matrix& m = f.shared.down;
  const int blocks = f.shared.inner / BLOCK;
  Ahead<FP4, FP4 ? 6 : 3> w;
  if (row < f.hidden) fetch_row(w, m, row, blocks, threadIdx.x % WARP);
  const float scale_2 = FP4 ? __ldg(m.scale_2) : 1;
  wait_for_previous();
  const float gate = f.gated ? 1 / (1 + __expf(-f.logits[f.experts])) : 1;
  load_scaled(inner, f.shared.inner, gate * scale_2, hs, threadIdx.x * 4, blockDim.x * 4);
  __syncthreads();
  return row < f.hidden ? dot_row(w, m, row, blocks, hs) : 0;
}

// x [hidden] += the experts' weighted down projections of inner, and the shared expert's; a warp for each row.
extern "C" __global__ void __launch_bounds__(512, 1) down(FeedForward f, const float* inner, int pitch, float* x) {
  extern __shared__ float4 shared[];
  float *hs = (float*)shared, *shared_hs = hs + padded(f.top_k * f.expert.inner);
  const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  float sum = 0;
  if (f.shared.inner)
    sum = f.shared.down.scale ? down_shared<true>(f, row, inner + f.top_k * pitch, shared_hs)
                              : down_shared<false>(f, row, inner + f.top_k * pitch, shared_hs);
  else
    wait_for_previous();
  if (f.top_k)
    sum += f.expert.down.scale ? down_experts<true>(f, row, inner, pitch, hs) : down_experts<false>(f, row, inner, pitch, hs);
  sum = warp_sum(sum);
  if (row < f.hidden && threadIdx.x % WARP == 0) x[row] += sum;
}

// ---- CodePredictor -------------------------------------------------------------------------------------------------------
// logits [V] and Gumbel noise [k] -> code: the k <= 64 best, of them the shortest head of probability >= top_p, and of these
// argmax(logit + noise). Then x [H] = embedding[code], embed_sum [H] += it. One block of 1024 threads; V is at most 4096.
extern "C" __global__ void __launch_bounds__(1024) sample(const float* logits, int V, const float* noise, int k, float top_p,
                                                          const half_bits* embedding, int H, long long* code, float* x,
                                                          float* embed_sum) {
  constexpr int LONGEST = 64, EACH = 4;
  __shared__ float sorted[LONGEST], odds[LONGEST];
  __shared__ unsigned key[LONGEST];
  __shared__ int id[LONGEST], sorted_id[LONGEST], found, chosen;
  const int t = threadIdx.x;
  wait_for_previous();
  if (t == 0) found = 0;
  unsigned own[EACH];
#pragma unroll
  for (int e = 0; e < EACH; e++) own[e] = t + e * 1024 < V ? order(logits[t + e * 1024]) : 0;
  unsigned low = 0, high = 0xffffffffu;  // bisect for a bound that k to 64 logits reach: all reach `low`, too few `high`
  while (high - low > 1) {
    const unsigned middle = low + (high - low) / 2;
    int count = 0;
#pragma unroll
    for (int e = 0; e < EACH; e++)
      if (e * 1024 < V) count += __syncthreads_count(own[e] >= middle);
    if (count < k) high = middle;
    else low = middle;
    if (count >= k && count <= LONGEST) break;
  }
#pragma unroll
  for (int e = 0; e < EACH; e++)
    if (own[e] && own[e] >= low) {
      const int at = atomicAdd(&found, 1);
      if (at < LONGEST) key[at] = own[e], id[at] = t + e * 1024;  // more only if many are equal
    }
  __syncthreads();
  const int count = found < LONGEST ? found : LONGEST;
  if (t < count) {  // best first, of equals the lower id
    int rank = 0;
    for (int i = 0; i < count; i++) rank += key[i] > key[t] || (key[i] == key[t] && id[i] < id[t]);
    sorted[rank] = logits[id[t]], sorted_id[rank] = id[t];
  }
  __syncthreads();
  if (t < k) odds[t] = __expf(sorted[t] - sorted[0]);
  __syncthreads();
  if (t < WARP) {
    float total = 0, best = -1e30f;
    for (int i = 0; i < k; i++) total += odds[i];
    int at = 0;
    for (int i = t; i < k; i += WARP) {
      float before = 0;
      for (int j = 0; j < i; j++) before += odds[j];
      if (before < top_p * total && sorted[i] + noise[i] > best) best = sorted[i] + noise[i], at = i;
    }
    for (int step = WARP / 2; step; step /= 2) {
      const float other = __shfl_xor_sync(FULL, best, step);
      const int other_at = __shfl_xor_sync(FULL, at, step);
      if (other > best || (other == best && other_at < at)) best = other, at = other_at;
    }
    if (t == 0) chosen = sorted_id[at], *code = sorted_id[at];
  }
  __syncthreads();
  for (int i = t; i < H; i += blockDim.x) {
    const float v = half_to_float(embedding[(size_t)chosen * H + i]);
    x[i] = v;
    embed_sum[i] += v;
  }
}
