// Matrix products of many rows: queries, keys and values, attention output, router, projections.

struct GemmArgs {
  const half_bits* x;  // [rows, K], pair order
  int K;
  const half_bits* bias;  // null, or one for each row of the matrices
  float* out;             // [rows, sum of the matrices' rows]
  int add;                // to what `out` holds
  const int* rows;
};

template <bool FP4>
__device__ __forceinline__ void gemm_rows(const Stacked& m, const GemmArgs& args, half_bits* tiles) {
  const int total = m.rows[0] + m.rows[1] + m.rows[2], rows = *args.rows, first = blockIdx.y * TOKENS;
  if (first >= rows) return;
  const int tokens = rows - first < TOKENS ? rows - first : TOKENS;
  const int output = first_output();
  Row w[1][2];
  float scale[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int local = output + 8 * r;
    w[0][r].in_bounds = local < total;
    w[0][r].matrix = m.matrix[0];
    if (local >= m.rows[0]) {
      local -= m.rows[0];
      w[0][r].matrix = m.matrix[1];
      if (local >= m.rows[1]) {
        local -= m.rows[1];
        w[0][r].matrix = m.matrix[2];
      }
    }
    w[0][r].row = local;
    scale[r] = FP4 && w[0][r].in_bounds ? __ldg(w[0][r].matrix.scale_2) * CODE_UNIT : 1;
  }
  float sum[1][TOKENS / 8][4] = {};
  gemm_tile<FP4, 1>(w, args.K, tokens, sum, [&](Tokens& from) {
    wait_for_previous();
    from.find(tokens, [&](int token) { return args.x + (size_t)(first + token) * args.K; });
  }, tiles);
  store_tile<1>(tokens, sum, [&](int token, int r, const float (&value)[1]) {
    const int row = output + 8 * r;
    if (row >= total) return;
    float* out = args.out + (size_t)(first + token) * total + row;
    *out = (args.add ? *out : 0) + value[0] * scale[r] + (args.bias ? half_to_float(__ldg(args.bias + row)) : 0);
  });
}

// Block (b, t): outputs b OUTPUTS ... of tokens t TOKENS ...; matrices all NVFP4 or all float16.
extern "C" __global__ void __launch_bounds__(128) gemm(Stacked m, GemmArgs args) {
  __shared__ __align__(16) half_bits tiles[TILE_HALVES];
  if (m.matrix[0].scale) gemm_rows<true>(m, args, tiles);
  else gemm_rows<false>(m, args, tiles);
}
