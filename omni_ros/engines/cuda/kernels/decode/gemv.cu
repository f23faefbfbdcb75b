// Matrix-vector products: queries, keys and values, attention output, router, heads.

struct Stacked {  // up to three matrices of K columns, whose products follow each other: queries, keys and values
  Matrix matrix[3];
  int rows[3];
};

struct GemvArgs {
  const float* x;
  const half_bits* gamma;  // null: x as it is
  float eps;
  int K;
  float* out;
  int add;        // to what `out` holds
  float* normed;  // null, or [K]: receives the normed x
};

template <Kind KIND>
__device__ __forceinline__ void gemv_rows(const Stacked& m, const GemvArgs& args, float* xs) {
  const int warps = blockDim.x / WARP, lane = threadIdx.x % WARP, blocks = args.K / BLOCK;
  const int total = m.rows[0] + m.rows[1] + m.rows[2];
  int row = blockIdx.x * warps + threadIdx.x / WARP, local;
  Matrix w;
  float scale_2;
  Ahead<KIND, KIND == HALVES ? 4 : 8> ahead;
  auto fetch = [&] {
    w = m.matrix[0];
    local = row;
    if (local >= m.rows[0]) {
      local -= m.rows[0];
      w = m.matrix[1];
      if (local >= m.rows[1]) {
        local -= m.rows[1];
        w = m.matrix[2];
      }
    }
    scale_2 = unit<KIND>(w);
    fetch_row(ahead, w, local, blocks, lane);
  };
  if (row < total) fetch();
  Vector x;
  x.fetch_gamma(args.gamma, args.K);
  wait_for_previous();
  x.fetch(args.x, args.K);
  x.store(args.gamma, args.K, args.eps, xs);
  if (args.normed && blockIdx.x == 0)
    for (int i = threadIdx.x; i < args.K; i += blockDim.x) args.normed[i] = xs[padded(i)];
  while (row < total) {
    const float before = args.add ? args.out[row] : 0, sum = warp_sum(dot_row(ahead, w, local, blocks, xs));
    if (lane == 0) args.out[row] = before + sum * scale_2;
    row += gridDim.x * warps;
    if (row < total) fetch();
  }
}

// out [sum rows] = matrices, all of one kind, times x [K] or its norm.
extern "C" __global__ void __launch_bounds__(256, 3) gemv(Stacked m, GemvArgs args) {
  extern __shared__ float4 shared[];
  switch (kind(m.matrix[0])) {
    case NVFP4: return gemv_rows<NVFP4>(m, args, (float*)shared);
    case FP8: return gemv_rows<FP8>(m, args, (float*)shared);
    default: return gemv_rows<HALVES>(m, args, (float*)shared);
  }
}
