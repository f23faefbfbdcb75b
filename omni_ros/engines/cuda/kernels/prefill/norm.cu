// What lies between the products, row by row: the feed-forward layers' sum, the RMSNorm, the move to float16 in pair order.

struct Pending {  // what the layer before this norm has still to add to x
  const float* routed;    // null, or [rows top_k, H]: the experts' outputs
  const float* weights;   // [rows, top_k]
  const int* position;    // [rows, top_k], in `routed`
  int top_k;
  const float* shared;    // null, or [rows, H]: the shared expert's output
  const float* logits;    // [rows, experts + gated]; the last, where `gated`, is the shared expert's gate
  int experts, gated;
  float* accepted;        // null, or [rows, H]: receives x before the features
  const float* features;  // null, or [rows, H]: a picture's deepstack features, where `visual` is not 0
  const int* visual;
};

__device__ __forceinline__ void add(float4& to, float weight, const float4& v) {
  to.x += weight * v.x;
  to.y += weight * v.y;
  to.z += weight * v.z;
  to.w += weight * v.w;
}

// x [rows, H] += what is pending; out [rows, H] = its RMSNorm, where `out` is not null. A block for each row.
extern "C" __global__ void __launch_bounds__(256) norm_rows(float* x, int H, Pending pending, const half_bits* gamma, float eps,
                                                            half_bits* out, const int* rows) {
  constexpr int EACH = 2;  // of eight channels: H is at most 4096
  __shared__ float partial[WARP];
  const int row = blockIdx.x, lane = threadIdx.x % WARP;
  if (row >= *rows) return;
  wait_for_previous();
  const float gate = pending.shared && pending.gated
                         ? 1 / (1 + __expf(-pending.logits[row * (pending.experts + pending.gated) + pending.experts]))
                         : 1;
  const bool seen = pending.features && *pending.visual;
  float4 v[EACH][2];
  float sum = 0;
  x += (size_t)row * H;
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const int i = (threadIdx.x + e * 256) * 8;
    if (i >= H) break;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float4& own = v[e][half];
      const int at = i + half * 4;
      own = *(const float4*)(x + at);
      if (pending.routed)
        for (int k = 0; k < pending.top_k; k++)
          add(own, pending.weights[row * pending.top_k + k],
              *(const float4*)(pending.routed + (size_t)pending.position[row * pending.top_k + k] * H + at));
      if (pending.shared) add(own, gate, *(const float4*)(pending.shared + (size_t)row * H + at));
      if (pending.accepted) *(float4*)(pending.accepted + (size_t)row * H + at) = own;
      if (seen) add(own, 1, *(const float4*)(pending.features + (size_t)row * H + at));
      if (pending.routed || pending.shared || seen) *(float4*)(x + at) = own;
      sum += own.x * own.x + own.y * own.y + own.z * own.z + own.w * own.w;
    }
  }
  if (!out) return;
  sum = warp_sum(sum);
  if (lane == 0) partial[threadIdx.x / WARP] = sum;
  __syncthreads();
  const float scale = rsqrtf(warp_sum(lane < 256 / WARP ? partial[lane] : 0) / H + eps);
#pragma unroll
  for (int e = 0; e < EACH; e++) {
    const int i = (threadIdx.x + e * 256) * 8;
    if (i >= H) break;
    float g[8];
    for (int c = 0; c < 8; c++) g[c] = scale * half_to_float(__ldg(gamma + i + c));
    const float4 a = v[e][0], b = v[e][1];
    *(uint4*)(out + (size_t)row * H + i) = make_uint4(activations(a.x * g[0], b.x * g[4]), activations(a.y * g[1], b.y * g[5]),
                                                     activations(a.z * g[2], b.z * g[6]),
                                                     activations(a.w * g[3], b.w * g[7]));
  }
}

// out [rows, K] = x, or SiLU of x: what a product takes. A block for each row.
extern "C" __global__ void __launch_bounds__(256) to_halves(const float* x, int K, int silu, half_bits* out, const int* rows) {
  if ((int)blockIdx.x >= *rows) return;
  wait_for_previous();
  for (int i = threadIdx.x; i < K; i += 256) {
    const float v = x[(size_t)blockIdx.x * K + i];
    out[(size_t)blockIdx.x * K + pair_position(i)] = activation(silu ? v / (1 + __expf(-v)) : v);
  }
}

// out [H] = the last row of x [rows, H].
extern "C" __global__ void __launch_bounds__(256) last_row(const float* x, int H, float* out, const int* rows) {
  wait_for_previous();
  for (int i = threadIdx.x; i < H; i += 256) out[i] = x[(size_t)(*rows - 1) * H + i];
}
