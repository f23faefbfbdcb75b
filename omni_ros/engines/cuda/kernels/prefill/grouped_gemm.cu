// Experts of many rows, shared ones too. A pair is a row and one of its experts; pairs are sorted by expert, and
// cut into tiles of one expert each.

struct Tile {
  int expert, first, tokens;  // pairs `first` ... in sorted order
};

// ids and weights [rows, top_k]; a warp for each row.
extern "C" __global__ void __launch_bounds__(128) route_rows(FeedForwardArgs args, const int* rows) {
  const int row = blockIdx.x * 4 + threadIdx.x / WARP;
  if (blockIdx.x * 4 >= *rows) return;
  wait_for_previous();
  if (row >= *rows) return;
  args.logits += row * (args.experts + args.gated);
  args.ids += row * args.top_k;
  args.weights += row * args.top_k;
  route(args, 0, true);
}

// For expert blockIdx.x: position [pair] and row [position] of its pairs, and its tiles. An expert's tiles begin at
// first / TOKENS + expert, which leaves room for those of all experts before it; what is left of the room has no tokens.
extern "C" __global__ void __launch_bounds__(256) scatter(const int* ids, int top_k, int* position, int* row, Tile* tiles,
                                                        const int* rows) {
  __shared__ int warp_own[8], warp_below[8];
  const int pairs = *rows * top_k, expert = blockIdx.x, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int each = (pairs + 255) / 256, begin = threadIdx.x * each, end = begin + each < pairs ? begin + each : pairs;
  wait_for_previous();
  int own = 0, below = 0;
  for (int i = begin; i < end; i++) {
    own += ids[i] == expert;
    below += ids[i] < expert;
  }
  int before = own;  // a running sum over the warp's lanes, then over the warps
  for (int step = 1; step < WARP; step *= 2) {
    const int other = __shfl_sync(FULL, before, lane < step ? lane : lane - step);
    if (lane >= step) before += other;
  }
  for (int step = WARP / 2; step; step /= 2) below += __shfl_xor_sync(FULL, below, step);
  if (lane == WARP - 1) {
    warp_own[warp] = before;
    warp_below[warp] = below;
  }
  __syncthreads();
  int first = 0, all = 0, at = before - own;
  for (int w = 0; w < 8; w++) {
    first += warp_below[w];
    all += warp_own[w];
    if (w < warp) at += warp_own[w];
  }
  at += first;
  for (int i = begin; i < end; i++)
    if (ids[i] == expert) {
      position[i] = at;
      row[at++] = i / top_k;
    }
  const int slot = first / TOKENS + expert, slots = (first + all) / TOKENS + expert + 1 - slot;
  for (int s = threadIdx.x; s < slots; s += 256) {
    const int left = all - s * TOKENS;
    tiles[slot + s] = {expert, first + s * TOKENS, left < 0 ? 0 : left < TOKENS ? left : TOKENS};
  }
}

struct GroupArgs {
  const Tile* tiles;  // null: the shared expert, whose pairs are the rows
  int experts, top_k;
  const int* rows;

  __device__ __forceinline__ Tile tile() const {
    const int slot = blockIdx.y;
    if (tiles) return slot < *rows * top_k / TOKENS + experts ? tiles[slot] : Tile{0, 0, 0};
    const int left = *rows - slot * TOKENS;
    return {0, slot * TOKENS, left < TOKENS ? left : TOKENS};
  }
};

template <bool FP4>
__device__ __forceinline__ void gate_up_tile(const SwiGLU& e, const Tile& t, const int* row, const half_bits* x, int H,
                                             half_bits* inner, half_bits* tiles) {
  const int output = first_output();
  Row w[2][2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    const size_t at = (size_t)t.expert * e.inner + output + 8 * r;
    const bool in_bounds = output + 8 * r < e.inner;
    w[0][r] = {e.gate, at, in_bounds};
    w[1][r] = {e.up, at, in_bounds};
  }
  const float gate_2 = FP4 ? __ldg(e.gate.scale_2 + t.expert) * CODE_UNIT : 1;
  const float up_2 = FP4 ? __ldg(e.up.scale_2 + t.expert) * CODE_UNIT : 1;
  float sum[2][TOKENS / 8][4] = {};
  gemm_tile<FP4, 2>(w, H, t.tokens, sum, [&](Tokens& from) {
    from.find(t.tokens, [&](int token) { return x + (size_t)(row ? row[t.first + token] : t.first + token) * H; });
  }, tiles);
  store_tile<2>(t.tokens, sum, [&](int token, int r, const float (&value)[2]) {
    const float a = value[0] * gate_2, b = value[1] * up_2;
    if (output + 8 * r < e.inner)
      inner[(size_t)(t.first + token) * e.inner + pair_position(output + 8 * r)] = activation(a / (1 + __expf(-a)) * b);
  });
}

// inner [pairs, inner] = silu(gate x) * up x, both in pair order; x [rows, H].
extern "C" __global__ void __launch_bounds__(128, 3) grouped_gate_up(SwiGLU e, GroupArgs groups, const int* row,
                                                                     const half_bits* x, int H, half_bits* inner) {
  __shared__ __align__(16) half_bits tiles[TILE_HALVES];
  wait_for_previous();
  const Tile t = groups.tile();
  if (t.tokens <= 0) return;
  if (e.gate.scale) gate_up_tile<true>(e, t, row, x, H, inner, tiles);
  else gate_up_tile<false>(e, t, row, x, H, inner, tiles);
}

template <bool FP4>
__device__ __forceinline__ void down_tile(const SwiGLU& e, const Tile& t, bool routed, const half_bits* inner, int H,
                                          float* out, half_bits* tiles) {
  const int output = first_output();
  Row w[1][2];
#pragma unroll
  for (int r = 0; r < 2; r++)
    w[0][r] = {e.down, (size_t)t.expert * H + output + 8 * r, output + 8 * r < H};
  const float scale = !FP4 ? 1 : routed ? CODE_UNIT : __ldg(e.down.scale_2) * CODE_UNIT;  // the experts' is in their weights
  float sum[1][TOKENS / 8][4] = {};
  gemm_tile<FP4, 1>(w, e.inner, t.tokens, sum, [&](Tokens& from) {
    from.find(t.tokens, [&](int token) { return inner + (size_t)(t.first + token) * e.inner; });
  }, tiles);
  store_tile<1>(t.tokens, sum, [&](int token, int r, const float (&value)[1]) {
    if (output + 8 * r < H) out[(size_t)(t.first + token) * H + output + 8 * r] = value[0] * scale;
  });
}

// out [pairs, H] = down inner; norm_rows weighs and adds what belongs to a row.
extern "C" __global__ void __launch_bounds__(128) grouped_down(SwiGLU e, GroupArgs groups, const half_bits* inner,
                                                               int H, float* out) {
  __shared__ __align__(16) half_bits tiles[TILE_HALVES];
  wait_for_previous();
  const Tile t = groups.tile();
  if (t.tokens <= 0) return;
  if (e.down.scale) down_tile<true>(e, t, groups.tiles, inner, H, out, tiles);
  else down_tile<false>(e, t, groups.tiles, inner, H, out, tiles);
}
