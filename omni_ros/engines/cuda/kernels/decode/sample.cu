// Drawing one code of the CodePredictor.

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
      // more only if many are equal
      if (at < LONGEST) {
        key[at] = own[e];
        id[at] = t + e * 1024;
      }
    }
  __syncthreads();
  const int count = found < LONGEST ? found : LONGEST;
  if (t < count) {  // best first, of equals the lower id
    int rank = 0;
    for (int i = 0; i < count; i++) rank += key[i] > key[t] || (key[i] == key[t] && id[i] < id[t]);
    sorted[rank] = logits[id[t]];
    sorted_id[rank] = id[t];
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
      if (before < top_p * total && sorted[i] + noise[i] > best) {
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
