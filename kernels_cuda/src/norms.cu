// Norms over rows of `hidden` elements: RMS norm with the residual addition before it, and LayerNorm.
//
// The ladder
//   1. reference.rms_norm, reference.layer_norm: plain torch, three and more passes over memory.
//   2. naive: one block per row, two passes (sum of squares, then scaling), 2-byte accesses.
//   3. this: 16-byte accesses, and the row stays in registers between the passes (packed, since fp32 copies
//      of it spilled on sm_120), so each byte is read once and written once.
//      Expected (not measured): 85 % of copy bandwidth at many rows; at few rows the launch is the cost.
// One block per row and a reduction tree that depends on `hidden` alone: a row's bits do not depend on the batch.
// LayerNorm takes the mean first and then the variance around it from registers: no cancellation, unlike E[x^2] - E[x]^2.
#include "common.cuh"

#define MAX_VECTORS 4   // 16-byte vectors per thread; the launcher picks the block so that these cover the row

// residual += scale * delta (rounded to elem, as the residual stream is), out = residual / rms(residual) * (weight + offset).
// delta null: residual stays as it is. One block per row.
extern "C" __global__ void __launch_bounds__(1024)
add_rms_norm(elem* __restrict__ residual, const elem* delta, const elem* __restrict__ weight, elem* out, int hidden, float scale, float offset,
             float eps) {
  __shared__ float scratch[32];
  const size_t row = static_cast<size_t>(blockIdx.x) * hidden;
  uint4 kept[MAX_VECTORS];
  float squares = 0.f;
#pragma unroll
  for (int v = 0; v < MAX_VECTORS; v++) {
    const int at = (v * blockDim.x + threadIdx.x) * 8;
    if (at < hidden) {
      float x[8], d[8];
      kept[v] = load16(residual + row + at);
      unpack8(kept[v], x);
      if (delta) {
        unpack8(load16(delta + row + at), d);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] += scale * d[i];
        kept[v] = pack8(x);
        store16(residual + row + at, kept[v]);
        unpack8(kept[v], x);
      }
#pragma unroll
      for (int i = 0; i < 8; i++) squares += x[i] * x[i];
    }
  }
  const float factor = rsqrtf(block_sum(squares, scratch) / hidden + eps);
#pragma unroll
  for (int v = 0; v < MAX_VECTORS; v++) {
    const int at = (v * blockDim.x + threadIdx.x) * 8;
    if (at < hidden) {
      float x[8], w[8];
      unpack8(kept[v], x);
      unpack8(load16(weight + at), w);
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] *= factor * (w[i] + offset);
      store16(out + row + at, pack8(x));
    }
  }
}

// out = (x - mean) / sqrt(variance + eps) * weight + bias; weight and bias may be null. One block per row.
extern "C" __global__ void __launch_bounds__(1024)
layer_norm(const elem* x, const elem* __restrict__ weight, const elem* __restrict__ bias, elem* out, int hidden, float eps) {
  __shared__ float scratch[32];
  const size_t row = static_cast<size_t>(blockIdx.x) * hidden;
  uint4 kept[MAX_VECTORS];
  float sum = 0.f;
#pragma unroll
  for (int v = 0; v < MAX_VECTORS; v++) {
    const int at = (v * blockDim.x + threadIdx.x) * 8;
    if (at < hidden) {
      float a[8];
      kept[v] = load16(x + row + at);
      unpack8(kept[v], a);
#pragma unroll
      for (int i = 0; i < 8; i++) sum += a[i];
    }
  }
  const float mean = block_sum(sum, scratch) / hidden;
  float squares = 0.f;
#pragma unroll
  for (int v = 0; v < MAX_VECTORS; v++) {
    const int at = (v * blockDim.x + threadIdx.x) * 8;
    if (at < hidden) {
      float a[8];
      unpack8(kept[v], a);
#pragma unroll
      for (int i = 0; i < 8; i++) squares += (a[i] - mean) * (a[i] - mean);
    }
  }
  const float factor = rsqrtf(block_sum(squares, scratch) / hidden + eps);
#pragma unroll
  for (int v = 0; v < MAX_VECTORS; v++) {
    const int at = (v * blockDim.x + threadIdx.x) * 8;
    if (at < hidden) {
      float a[8], w[8];
      unpack8(kept[v], a);
#pragma unroll
      for (int i = 0; i < 8; i++) a[i] = (a[i] - mean) * factor;
      if (weight) {
        unpack8(load16(weight + at), w);
#pragma unroll
        for (int i = 0; i < 8; i++) a[i] *= w[i];
      }
      if (bias) {
        unpack8(load16(bias + at), w);
#pragma unroll
        for (int i = 0; i < 8; i++) a[i] += w[i];
      }
      store16(out + row + at, pack8(a));
    }
  }
}
