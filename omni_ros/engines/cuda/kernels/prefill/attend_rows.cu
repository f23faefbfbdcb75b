// Attention of many query rows, each over the KV cache up to itself.

constexpr int QUERIES = 16;               // of a block: a warp for each head of a group
constexpr int KEY_ROW = HEAD_DIM + 16, VALUE_ROW = HEAD_DIM + 8;  // halves from row to row of a tile: no bank conflicts

// Normed and rotated: q [rows, heads, HEAD_DIM], and rows `past` ... of the caches [kv_heads, capacity, HEAD_DIM]. rope.cos_sin
// [rows, HEAD_DIM]; qkv [rows, heads + 2 kv_heads, HEAD_DIM]. A warp for each of a row's heads.
extern "C" __global__ void __launch_bounds__(256) rope_rows(const float* qkv, Rope rope, half_bits* q, cached* keys,
                                                              cached* values, const int* past, int heads, int kv_heads,
                                                              int capacity, const int* rows, float key_scale,
                                                              float value_scale) {
  __shared__ float roped[8][HEAD_DIM];
  const int row = blockIdx.x, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y * 8 + warp;
  if (row >= *rows) return;
  wait_for_previous();
  if (head >= heads + 2 * kv_heads) return;
  const float* from = qkv + ((size_t)row * (heads + 2 * kv_heads) + head) * HEAD_DIM;
  const bool is_value = head >= heads + kv_heads;
  if (!is_value) {
    rope.cos_sin += row * HEAD_DIM;
    norm_rope(from, head < heads ? rope.q_norm : rope.k_norm, rope, roped[warp]);
    __syncwarp();
    from = roped[warp];
  }
  if (head < heads) {
    for (int i = lane; i < HEAD_DIM; i += WARP) q[((size_t)row * heads + head) * HEAD_DIM + i] = activation(from[i]);
    return;
  }
  cached* to = (is_value ? values : keys) + ((size_t)((head - heads) % kv_heads) * capacity + *past + row) * HEAD_DIM;
  const float scale = is_value ? value_scale : key_scale;
  for (int i = lane; i < HEAD_DIM; i += WARP) to[i] = to_cache(finite(from[i]), scale);
}

// q [rows, heads, HEAD_DIM] -> out, the same, in pair order. Block (h, b): queries b QUERIES ... of the GROUP heads of key head
// h. A tile of keys at a time, with a running maximum and sum (FlashAttention-2).
extern "C" __global__ void __launch_bounds__(WARP * GROUP) attend_rows(const half_bits* q, const cached* keys,
                                                                        const cached* values, const int* past, int capacity,
                                                                        half_bits* out, const int* rows, float key_scale,
                                                                        float value_scale) {
  constexpr int COLUMNS = HEAD_DIM / 8, EACH = TILE * COLUMNS / (WARP * GROUP), STEPS = HEAD_DIM / 16;
  __shared__ __align__(16) half_bits key_tile[TILE * KEY_ROW], value_tile[TILE * VALUE_ROW];
  const int heads = gridDim.x * GROUP, own = blockIdx.x * GROUP + threadIdx.x / WARP, first = blockIdx.y * QUERIES;
  const int lane = threadIdx.x % WARP, group = lane / 4, quad = lane % 4;
  if (first >= *rows) return;
  wait_for_previous();
  const int last = (first + QUERIES < *rows ? first + QUERIES : *rows) - 1, length = *past + last + 1;
  keys += (size_t)blockIdx.x * capacity * HEAD_DIM;
  values += (size_t)blockIdx.x * capacity * HEAD_DIM;
  unsigned query[STEPS][4];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const int row = first + group + 8 * r;
#pragma unroll
    for (int j = 0; j < STEPS; j++) {
      const half_bits* from = q + ((size_t)row * heads + own) * HEAD_DIM + 16 * j + 4 * quad;
      const uint2 v = row <= last ? *(const uint2*)from : make_uint2(0, 0);
      query[j][r] = v.x;
      query[j][2 + r] = v.y;
    }
  }
  cached_8 key_part[EACH], value_part[EACH];
  auto fetch_tile = [&](int tile) {
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = threadIdx.x + e * WARP * GROUP, row = tile * TILE + i / COLUMNS;
      const size_t at = (size_t)row * HEAD_DIM + i % COLUMNS * 8;
      key_part[e] = row < length ? *(const cached_8*)(keys + at) : cached_8{};
      value_part[e] = row < length ? *(const cached_8*)(values + at) : cached_8{};
    }
  };
  const float root = rsqrtf((float)HEAD_DIM) * (key_scale * CACHE_UNIT);
  float best[2] = {-1e30f, -1e30f}, total[2] = {}, sum[2 * STEPS][4] = {};
  fetch_tile(0);
  for (int tile = 0; tile * TILE < length; tile++) {
    __syncthreads();
#pragma unroll
    for (int e = 0; e < EACH; e++) {
      const int i = threadIdx.x + e * WARP * GROUP, row = i / COLUMNS, column = i % COLUMNS * 8;
      *(uint4*)(key_tile + row * KEY_ROW + column) = as_halves(key_part[e]);
      *(uint4*)(value_tile + row * VALUE_ROW + column) = pair_order(as_halves(value_part[e]));
    }
    __syncthreads();
    if ((tile + 1) * TILE < length) fetch_tile(tile + 1);
    float score[TILE / 8][4] = {}, better[2] = {best[0], best[1]};
#pragma unroll
    for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
      for (int j = 0; j < STEPS; j++) {
        const uint2 k = *(const uint2*)(key_tile + (8 * n + group) * KEY_ROW + 16 * j + 4 * quad);
        mma(score[n], query[j], k.x, k.y);
      }
#pragma unroll
      for (int i = 0; i < 4; i++) {  // rows group and group + 8, keys 2 quad and the next
        const bool seen = tile * TILE + 8 * n + 2 * quad + i % 2 <= *past + first + group + i / 2 * 8;
        score[n][i] = seen ? score[n][i] * root : -1e30f;
        better[i / 2] = fmaxf(better[i / 2], score[n][i]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
      for (int step = 1; step < 4; step *= 2) better[r] = fmaxf(better[r], __shfl_xor_sync(FULL, better[r], step));
      const float old = __expf(best[r] - better[r]);
      best[r] = better[r];
      total[r] *= old;
#pragma unroll
      for (int j = 0; j < 2 * STEPS; j++) sum[j][2 * r] *= old, sum[j][2 * r + 1] *= old;
    }
#pragma unroll
    for (int n = 0; n < TILE / 8; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        score[n][i] = __expf(score[n][i] - best[i / 2]);
        total[i / 2] += score[n][i];
      }
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
      const unsigned weight[4] = {activations(score[2 * k][0], score[2 * k][1]), activations(score[2 * k][2], score[2 * k][3]),
                                  activations(score[2 * k + 1][0], score[2 * k + 1][1]),
                                  activations(score[2 * k + 1][2], score[2 * k + 1][3])};
#pragma unroll
      for (int j = 0; j < STEPS; j++) {  // sum[2 j] has the even channels of these 16, sum[2 j + 1] the odd ones
        unsigned v[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
          v[i] = *(const unsigned*)(value_tile + (16 * k + 2 * quad + i % 2 + i / 2 * 8) * VALUE_ROW + 16 * j + 2 * group);
        mma(sum[2 * j], weight, __byte_perm(v[0], v[1], 0x5410), __byte_perm(v[2], v[3], 0x5410));
        mma(sum[2 * j + 1], weight, __byte_perm(v[0], v[1], 0x7632), __byte_perm(v[2], v[3], 0x7632));
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    for (int step = 1; step < 4; step *= 2) total[r] += __shfl_xor_sync(FULL, total[r], step);
    total[r] /= value_scale * CACHE_UNIT;
    const int row = first + group + 8 * r;
    if (row <= last)
#pragma unroll
      for (int j = 0; j < STEPS; j++)
        *(uint2*)(out + ((size_t)row * heads + own) * HEAD_DIM + 16 * j + 4 * quad) =
            make_uint2(activations(sum[2 * j][2 * r] / total[r], sum[2 * j + 1][2 * r] / total[r]),
                       activations(sum[2 * j][2 * r + 1] / total[r], sum[2 * j + 1][2 * r + 1] / total[r]));
  }
}
