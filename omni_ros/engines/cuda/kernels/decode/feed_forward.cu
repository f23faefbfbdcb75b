// Experts and dense feed-forward layers of one row.

constexpr int MAX_EXPERTS = 256, MAX_SLOTS = 16;

struct SwiGLU {
  Matrix gate, up, down;  // [inner, hidden] twice, [hidden, inner]; stacks of them for experts
  int inner;
};
struct FeedForwardArgs {
  SwiGLU expert, shared;  // `experts` may be 0: a dense layer is a shared expert alone
  int experts, top_k, normalize;
  const float* logits;  // [experts + gated]; the last, where `gated`, is the shared expert's gate
  int* ids;             // [top_k], what gate_up chose
  float* weights;       // [top_k], times the scale_2 of their `down`
  int gated, hidden;
};

// The expert with the `slot`-th largest logit. Each warp finds it for itself; the one that is told to `publish` leaves all
// top_k and their weights, a softmax over the logits, for `down`.
__device__ __forceinline__ int route(const FeedForwardArgs& args, int slot, bool publish) {
  constexpr int EACH = MAX_EXPERTS / WARP;
  const int lane = threadIdx.x % WARP;
  float logit[EACH];
  unsigned key[EACH];
  int id = 0, mine = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    logit[i] = lane + i * WARP < args.experts ? args.logits[lane + i * WARP] : -1e30f;
    key[i] = lane + i * WARP < args.experts ? order(logit[i]) : 0;
  }
  for (int k = 0; k < (publish ? args.top_k : slot + 1); k++) {
    unsigned top = 0;
    int at = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++)
      if (key[i] > top) {
        top = key[i];
        at = i;
      }
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
    const bool chosen = lane < args.top_k;
    const float own = chosen ? args.logits[mine] : -1e30f, best = warp_max(own);
    const float weight = chosen ? __expf(own - best) : 0;
    float total = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) total += __expf(logit[i] - best);
    total = warp_sum(args.normalize ? weight : total);
    if (chosen) {
      args.ids[lane] = mine;
      args.weights[lane] = weight / total * (args.expert.down.scale ? __ldg(args.expert.down.scale_2 + mine) : 1);
    }
  }
  return id;
}

template <Kind W>
__device__ __forceinline__ void gate_up_rows(const FeedForwardArgs& args, const SwiGLU& e, bool routed, const float* x,
                                             const half_bits* gamma, float eps, float* inner, float* xs) {
  const int warps = blockDim.x / WARP, lane = threadIdx.x % WARP, blocks = args.hidden / BLOCK;
  int row = blockIdx.x * warps + threadIdx.x / WARP, id = 0;
  Ahead<W, W == HALVES ? 2 : 4> g, u;
  Vector v;
  v.fetch_gamma(gamma, args.hidden);
  if (routed) {
    wait_for_previous();
    v.fetch(x, args.hidden);
    id = route(args, blockIdx.y, blockIdx.y == 0 && row == 0);
  }
  const size_t start = (size_t)id * e.inner;
  if (row < e.inner) {
    fetch_row(g, e.gate, start + row, blocks, lane);
    fetch_row(u, e.up, start + row, blocks, lane);
  }
  const float gate_2 = unit<W>(e.gate, id), up_2 = unit<W>(e.up, id);
  if (!routed) {
    wait_for_previous();
    v.fetch(x, args.hidden);
  }
  v.store(true, args.hidden, eps, xs);
  while (row < e.inner) {
    float a = dot_row(g, e.gate, start + row, blocks, xs), b = dot_row(u, e.up, start + row, blocks, xs);
    const int next = row + gridDim.x * warps;
    if (next < e.inner) {
      fetch_row(g, e.gate, start + next, blocks, lane);
      fetch_row(u, e.up, start + next, blocks, lane);
    }
    a = warp_sum(a) * gate_2;
    b = warp_sum(b) * up_2;
    if (lane == 0) inner[row] = a / (1 + __expf(-a)) * b;
    row = next;
  }
}

// inner [slots, pitch] = silu(gate x) * up x of block row blockIdx.y's expert; the slot after the experts is the shared one.
extern "C" __global__ void __launch_bounds__(256, 3) gate_up(FeedForwardArgs args, const float* x, const half_bits* gamma,
                                                             float eps, float* inner, int pitch) {
  extern __shared__ float4 shared[];
  const bool routed = (int)blockIdx.y < args.top_k;
  const SwiGLU& e = routed ? args.expert : args.shared;
  inner += blockIdx.y * pitch;
  switch (kind(e.gate)) {
    case NVFP4: return gate_up_rows<NVFP4>(args, e, routed, x, gamma, eps, inner, (float*)shared);
    case FP8: return gate_up_rows<FP8>(args, e, routed, x, gamma, eps, inner, (float*)shared);
    default: return gate_up_rows<HALVES>(args, e, routed, x, gamma, eps, inner, (float*)shared);
  }
}

// hs = inner times w; K and pitches are multiples of 4.
__device__ __forceinline__ void load_scaled(const float* inner, int K, float w, float* hs, int first, int step) {
  for (int i = first; i < K; i += step) {
    float4 v = *(const float4*)(inner + i);
    v.x *= w;
    v.y *= w;
    v.z *= w;
    v.w *= w;
    *(float4*)(hs + padded(i)) = v;
  }
}

template <Kind W>
__device__ __forceinline__ float down_experts(const FeedForwardArgs& args, int row, const float* inner, int pitch, float* hs) {
  constexpr int A = W == NVFP4 ? 12 : 4;
  __shared__ int ids[MAX_SLOTS];
  const int lane = threadIdx.x % WARP, blocks = args.expert.inner / BLOCK, all = args.top_k * blocks;
  Ahead<W, A> e;
  auto fetch = [&](int first) {
#pragma unroll
    for (int a = 0; a < A; a++) {
      const int block = first + a * WARP;
      if (block < all) {
        const size_t start = ((size_t)ids[block / blocks] * args.hidden + row) * blocks;
        e.fetch(args.expert.down, start + block % blocks, a);
      }
    }
  };
  if ((int)threadIdx.x < args.top_k) ids[threadIdx.x] = args.ids[threadIdx.x];
  __syncthreads();
  if (row < args.hidden) fetch(lane);
  for (int slot = threadIdx.x / WARP; slot < args.top_k; slot += blockDim.x / WARP)
    load_scaled(inner + slot * pitch, args.expert.inner, args.weights[slot], hs + padded(slot * args.expert.inner), lane * 4,
                WARP * 4);
  __syncthreads();
  return row < args.hidden ? dot_blocks(e, all, hs, fetch) : 0;
}

template <Kind KIND>
__device__ __forceinline__ float down_shared(const FeedForwardArgs& args, int row, const float* inner, float* hs) {
  const Matrix& m = args.shared.down;
  const int blocks = args.shared.inner / BLOCK;
  Ahead<KIND, KIND == HALVES ? 3 : 6> w;
  if (row < args.hidden) fetch_row(w, m, row, blocks, threadIdx.x % WARP);
  const float scale_2 = unit<KIND>(m);
  wait_for_previous();
  const float gate = args.gated ? 1 / (1 + __expf(-args.logits[args.experts])) : 1;
  load_scaled(inner, args.shared.inner, gate * scale_2, hs, threadIdx.x * 4, blockDim.x * 4);
  __syncthreads();
  return row < args.hidden ? dot_row(w, m, row, blocks, hs) : 0;
}

// x [hidden] += the experts' weighted down projections of inner, and the shared expert's; a warp for each row.
extern "C" __global__ void __launch_bounds__(512, 1) down(FeedForwardArgs args, const float* inner, int pitch, float* x) {
  extern __shared__ float4 shared[];
  float *hs = (float*)shared, *shared_hs = hs + padded(args.top_k * args.expert.inner);
  const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  float sum = 0;
  if (args.shared.inner)
    sum = kind(args.shared.down) == NVFP4 ? down_shared<NVFP4>(args, row, inner + args.top_k * pitch, shared_hs)
                                          : down_shared<HALVES>(args, row, inner + args.top_k * pitch, shared_hs);
  else
    wait_for_previous();
  if (args.top_k)
    sum += kind(args.expert.down) == NVFP4 ? down_experts<NVFP4>(args, row, inner, pitch, hs)
                                           : down_experts<HALVES>(args, row, inner, pitch, hs);
  sum = warp_sum(sum);
  if (row < args.hidden && threadIdx.x % WARP == 0) x[row] += sum;
}
