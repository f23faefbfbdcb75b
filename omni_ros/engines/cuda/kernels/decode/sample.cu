// Drawing one code of the CodePredictor.

// logits [V] and Gumbel noise [k] -> code: the k <= 64 best, of them the shortest head of probability >= top_p, and of these
// argmax(logit + noise). Then x [H] = embedding[code], embed_sum [H] += it. One block of 1024 threads; V is at most 4096.
extern "C" __global__ void __launch_bounds__(1024) sample(const float* logits, int V, const float* noise, int k, float top_p,
                                                          const half_bits* embedding, int H, long long* code, float* x,
                                                          float* embed_sum) {
  constexpr int LONGEST = 64, EACH = 4;
  __shared__ float sorted[LONGEST];
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
      // more only if many are equal
      if (at < LONGEST) {
        key[at] = own[e];
        id[at] = t + e * 1024;
      }
    }
  __syncthreads();
  const int count = found < LONGEST ? found : LONGEST;
  for (int c = t / WARP; c < count; c += blockDim.x / WARP) {  // best first, of equals the lower id
    const int lane = t % WARP;
    int rank = 0;
    for (int i = lane; i < LONGEST; i += WARP) {
      const bool better = i < count && (key[i] > key[c] || (key[i] == key[c] && id[i] < id[c]));
      rank += __popc(__ballot_sync(FULL, better));
    }
    if (lane == 0) {
      sorted[rank] = logits[id[c]];
      sorted_id[rank] = id[c];
    }
  }
  __syncthreads();
  if (t < WARP) {
    float odds[LONGEST / WARP], upto[LONGEST / WARP], total = 0, best = -1e30f;
#pragma unroll
    for (int part = 0; part < LONGEST / WARP; part++) {
      const int i = t + part * WARP;
      odds[part] = upto[part] = i < k ? __expf(sorted[i] - sorted[0]) : 0;
      for (int step = 1; step < WARP; step *= 2) {
        const float left = __shfl_sync(FULL, upto[part], t >= step ? t - step : t);
        if (t >= step) upto[part] += left;
      }
      upto[part] += total;
      total = __shfl_sync(FULL, upto[part], WARP - 1);
    }
    int at = 0;
#pragma unroll
    for (int part = 0; part < LONGEST / WARP; part++) {
      const int i = t + part * WARP;
      if (i < k && upto[part] - odds[part] < top_p * total && sorted[i] + noise[i] > best) {
        best = sorted[i] + noise[i];
        at = i;
      }
    }
    for (int step = WARP / 2; step; step /= 2) {
      const float other = __shfl_xor_sync(FULL, best, step);
      const int other_at = __shfl_xor_sync(FULL, at, step);
      if (other > best || (other == best && other_at < at)) {
        best = other;
        at = other_at;
      }
    }
    if (t == 0) {
      chosen = sorted_id[at];
      *code = sorted_id[at];
    }
  }
  __syncthreads();
  for (int i = t; i < H; i += blockDim.x) {
    const float v = half_to_float(embedding[(size_t)chosen * H + i]);
    x[i] = v;
    embed_sum[i] += v;
  }
}
