// Attention of one query row over the KV cache.

constexpr int TILE = 32;  // cache rows at a time, one per lane
constexpr int PER_LANE = HEAD_DIM / WARP;                   // channels, neighbours
constexpr int PAIRS = (HEAD_DIM / 2 + WARP - 1) / WARP;      // rotated pairs of channels per lane

// What the KV cache keeps: float16, or with FP8_CACHE the E4M3 code of a number divided by a scale. Tiles in shared memory are
// halves in both: the bits of a code placed in a half are worth 1 / CACHE_UNIT of its value, exactly (see dot_bytes).
#ifdef FP8_CACHE
typedef unsigned char cached;
typedef uint2 cached_8;
constexpr float CACHE_UNIT = 256;
__device__ __forceinline__ cached to_cache(float v, float scale) {  // to nearest even; what is beyond 448 becomes 448
  v /= scale;
  const float size = fminf(fabsf(v), 448.f);
  const unsigned sign = __float_as_uint(v) >> 24 & 0x80u, bits = __float_as_uint(size);
  if (size < 0.015625f) return sign | (unsigned)rintf(size * 512);  // denormal, or the least that is not
  return sign | (bits + 0x7ffffu + (bits >> 20 & 1) - (120u << 23)) >> 20;
}
__device__ __forceinline__ half_bits as_half(cached code) { return (code & 0x80) << 8 | (code & 0x7f) << 7; }
__device__ __forceinline__ uint4 as_halves(cached_8 v) {
  const auto pair = [](unsigned t) { return (t & 0x00800080u) << 8 | (t & 0x007f007fu) << 7; };
  return make_uint4(pair(__byte_perm(v.x, 0, 0x4140)), pair(__byte_perm(v.x, 0, 0x4342)), pair(__byte_perm(v.y, 0, 0x4140)),
                    pair(__byte_perm(v.y, 0, 0x4342)));
}
#else
typedef half_bits cached;
typedef uint4 cached_8;
constexpr float CACHE_UNIT = 1;
__device__ __forceinline__ cached to_cache(float v, float) { return float_to_half(v); }
__device__ __forceinline__ half_bits as_half(cached h) { return h; }
__device__ __forceinline__ uint4 as_halves(cached_8 v) { return v; }
#endif

__device__ __forceinline__ void load_channels(const half_bits* from, float (&v)[PER_LANE]) {
  if constexpr (PER_LANE == 4) {
    const uint2 w = *(const uint2*)from;
    v[0] = half_to_float((half_bits)(w.x & 0xffffu));
    v[1] = half_to_float((half_bits)(w.x >> 16));
    v[2] = half_to_float((half_bits)(w.y & 0xffffu));
    v[3] = half_to_float((half_bits)(w.y >> 16));
  } else {
    for (int i = 0; i < PER_LANE; i++) v[i] = half_to_float(from[i]);
  }
}
__device__ __forceinline__ void load_channels(const float* from, float (&v)[PER_LANE]) {
  if constexpr (PER_LANE == 4) {
    const float4 w = *(const float4*)from;
    v[0] = w.x;
    v[1] = w.y;
    v[2] = w.z;
    v[3] = w.w;
  } else {
    for (int i = 0; i < PER_LANE; i++) v[i] = from[i];
  }
}

struct Rope {
  const half_bits *q_norm, *k_norm;  // [HEAD_DIM]
  float eps;
  const float* cos_sin;  // [HEAD_DIM]: the cosines of this row's HEAD_DIM / 2 angles, then the sines
};

// This warp's head [HEAD_DIM]: RMSNorm with `gamma`, then rotated; channel i turns with channel i + HEAD_DIM / 2.
__device__ __forceinline__ void norm_rope(const float* head, const half_bits* gamma, const Rope& rope, float* out) {
  const int lane = threadIdx.x % WARP;
  float low[PAIRS], high[PAIRS], cosine[PAIRS], sine[PAIRS], gamma_low[PAIRS], gamma_high[PAIRS], sum = 0;
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int i = lane + j * WARP < HEAD_DIM / 2 ? lane + j * WARP : 0;
    low[j] = head[i];
    high[j] = head[i + HEAD_DIM / 2];
    cosine[j] = rope.cos_sin[i];
    sine[j] = rope.cos_sin[i + HEAD_DIM / 2];
    gamma_low[j] = half_to_float(__ldg(gamma + i));
    gamma_high[j] = half_to_float(__ldg(gamma + i + HEAD_DIM / 2));
    if (lane + j * WARP < HEAD_DIM / 2) sum += low[j] * low[j] + high[j] * high[j];
  }
  const float scale = rsqrtf(warp_sum(sum) / HEAD_DIM + rope.eps);
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    const int i = lane + j * WARP;
    const float a = low[j] * scale * gamma_low[j], b = high[j] * scale * gamma_high[j];
    if (i < HEAD_DIM / 2) {
      out[i] = a * cosine[j] - b * sine[j];
      out[i + HEAD_DIM / 2] = b * cosine[j] + a * sine[j];
    }
  }
}

// One query row against the cache [kv_heads, capacity, HEAD_DIM], after appending this row's key and value to it.
// qkv [(GROUP kv_heads + 2 kv_heads) HEAD_DIM] -> out [GROUP kv_heads HEAD_DIM]. Block (h, s) does the tiles s, s + split_k,
// ... for the GROUP query heads of key head h, a warp for each; the last block of a head puts the splits, at most WARP, together
// (Flash-Decoding). `partial` [kv_heads, split_k, GROUP, HEAD_DIM], then as many pairs of a maximum and a sum; `arrived`
// [kv_heads] is zero before and after. No kernel before it writes `past` or the rows before this one: they are read at once.
// key_scale, value_scale: of an FP8 cache, else 1.
extern "C" __global__ void __launch_bounds__(WARP * GROUP) attend(const float* qkv, Rope rope, cached* keys, cached* values,
                                                                   const int* past, int capacity, float* partial,
                                                                   int* arrived, float* out, float key_scale,
                                                                   float value_scale) {
  constexpr int ROW = HEAD_DIM + 8;  // halves from row to row of the key tile
  __shared__ __align__(16) float q[GROUP][HEAD_DIM], new_key[HEAD_DIM];
  __shared__ __align__(16) half_bits key_tile[TILE * ROW], value_tile[TILE * HEAD_DIM];
  __shared__ int last;
  const int kv_heads = gridDim.x, head = blockIdx.x, split_k = gridDim.y, split = blockIdx.y;
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  const int length = *past + 1, tiles = (length + TILE - 1) / TILE, active = tiles < split_k ? tiles : split_k;
  if (split >= active) return;
  keys += (size_t)head * capacity * HEAD_DIM;
  values += (size_t)head * capacity * HEAD_DIM;
  constexpr int COLUMNS = HEAD_DIM / 8, EACH = TILE * COLUMNS / (WARP * GROUP);  // what a thread loads of a tile
  static_assert(EACH * WARP * GROUP == TILE * COLUMNS, "a tile is shared evenly");
  cached_8 key_part[EACH], value_part[EACH];
  auto fetch_tile = [&](int tile) {  // but the new row, which may not be there yet
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = threadIdx.x + e * WARP * GROUP, row = tile * TILE + i / COLUMNS;
      const size_t at = (size_t)row * HEAD_DIM + i % COLUMNS * 8;
      const bool in_bounds = row < length - 1;
      key_part[e] = in_bounds ? *(const cached_8*)(keys + at) : cached_8{};
      value_part[e] = in_bounds ? *(const cached_8*)(values + at) : cached_8{};
    }
  };
  auto store_tile = [&] {
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = threadIdx.x + e * WARP * GROUP, row = i / COLUMNS, column = i % COLUMNS * 8;
      *(uint4*)(key_tile + row * ROW + column) = as_halves(key_part[e]);
      *(uint4*)(value_tile + row * HEAD_DIM + column) = as_halves(value_part[e]);
    }
  };
  fetch_tile(split);
  wait_for_previous();
  const float *key = qkv + (GROUP * kv_heads + head) * HEAD_DIM, *value = key + kv_heads * HEAD_DIM;
  norm_rope(qkv + (head * GROUP + warp) * HEAD_DIM, rope.q_norm, rope, q[warp]);
  const bool owner = (tiles - 1) % split_k == split;  // of the tile with the new row
  if (owner && warp == GROUP - 1) norm_rope(key, rope.k_norm, rope, new_key);
  auto add_new_row = [&] {
    for (int i = threadIdx.x; i < HEAD_DIM; i += blockDim.x) {
      const cached k = to_cache(new_key[i], key_scale), v = to_cache(value[i], value_scale);
      keys[(size_t)(length - 1) * HEAD_DIM + i] = k;
      values[(size_t)(length - 1) * HEAD_DIM + i] = v;
      key_tile[(length - 1) % TILE * ROW + i] = as_half(k);
      value_tile[(length - 1) % TILE * HEAD_DIM + i] = as_half(v);
    }
  };
  const float root = rsqrtf((float)HEAD_DIM) * (key_scale * CACHE_UNIT);
  float best = -1e30f, total = 0, sum[PER_LANE], v[PER_LANE];
  for (int i = 0; i < PER_LANE; i++) sum[i] = 0;
  for (int tile = split; tile < tiles; tile += split_k) {
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
  const float unit = value_scale * CACHE_UNIT;
  if (active == 1) {
    for (int i = 0; i < PER_LANE; i++) out[i] = sum[i] / (total / unit);
    return;
  }
  float* stats = partial + (size_t)kv_heads * split_k * GROUP * HEAD_DIM;
  const int mine = (head * split_k + split) * GROUP + warp;
  for (int i = 0; i < PER_LANE; i++) partial[mine * HEAD_DIM + lane * PER_LANE + i] = sum[i];
  if (lane == 0) {
    stats[2 * mine] = best;
    stats[2 * mine + 1] = total;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(arrived + head, 1) == active - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int theirs = (head * split_k + lane) * GROUP + warp;  // of the split that this lane looks at
  const float their_best = lane < active ? stats[2 * theirs] : -1e30f, their_total = lane < active ? stats[2 * theirs + 1] : 0;
  const float scale = __expf(their_best - warp_max(their_best));
  total = warp_sum(scale * their_total);
  for (int i = 0; i < PER_LANE; i++) sum[i] = 0;
#pragma unroll
  for (int s = 0; s < WARP; s++) {
    const float w = __shfl_sync(FULL, scale, s);
    if (s < active) {
      load_channels(partial + ((head * split_k + s) * GROUP + warp) * HEAD_DIM + lane * PER_LANE, v);
#pragma unroll
      for (int i = 0; i < PER_LANE; i++) sum[i] += w * v[i];
    }
  }
  for (int i = 0; i < PER_LANE; i++) out[i] = sum[i] / (total / unit);
  if (threadIdx.x == 0) arrived[head] = 0;
}
