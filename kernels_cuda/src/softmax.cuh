// A step of the online softmax (arXiv:1805.02867) over one tile of scores, as both prefill kernels hold them: rows g and g + 8 of a warp's 16,
// of every 8 tokens 2t and 2t + 1, for lane 4g + t. s[n][2 * h + c] is row g + 8 * h, token n * 8 + 2t + c of the tile.
#pragma once
#include "common.cuh"

// cap * tanh(scale * score / cap) * log2(e), in the launcher's constants: cap has log2(e) in it, cap_rate is 2 * scale * log2(e) / cap.
template <int N> __device__ __forceinline__ void cap_scores(float (&s)[N][4], float cap, float cap_rate) {
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) s[n][c] = cap - 2.f * cap * __fdividef(1.f, 1.f + ex2(fminf(s[n][c] * cap_rate, 126.f)));
}
// NEG_BIG for what a row does not see: later tokens than its own position, and those before its window.
template <int N> __device__ __forceinline__ void mask_scores(float (&s)[N][4], const int (&position)[2], int token0, int window, int t) {
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int newest = position[h] - token0 - 2 * t, oldest = window ? newest - window + 1 : -8 * N;   // as n * 8 + c below
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
      for (int c = 0; c < 2; c++)
        if (n * 8 + c > newest || n * 8 + c < oldest) s[n][2 * h + c] = NEG_BIG;
  }
}
// The scores of row g + 8 * h to weights; top and sum (of this lane's tokens) go on over the tiles. Returns what the result so far has to be
// multiplied by: exactly 1 where the row sees nothing of the tile.
template <int N> __device__ __forceinline__ float weigh_scores(float (&s)[N][4], int h, float factor, float& top, float& sum) {
  float higher = top;
#pragma unroll
  for (int n = 0; n < N; n++) higher = fmaxf(higher, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
  higher = fmaxf(higher, __shfl_xor_sync(FULL_WARP, higher, 1));
  higher = fmaxf(higher, __shfl_xor_sync(FULL_WARP, higher, 2));
  const float shrink = ex2((top - higher) * factor);
  const float offset = higher == NEG_BIG ? 0.f : higher * factor;   // a row that has seen nothing yet: 2^-big is 0, 2^0 would be 1
  top = higher;
  sum *= shrink;
#pragma unroll
  for (int n = 0; n < N; n++)
#pragma unroll
    for (int c = 2 * h; c < 2 * h + 2; c++) {
      s[n][c] = ex2(fmaf(s[n][c], factor, -offset));
      sum += s[n][c];
    }
  return shrink;
}
