// What the attention kernels multiply: 16-bit operands of the model's type, or fp16 where the cache is fp8, whose values fp16 holds exactly.
//
// Macro: FP8_CACHE.
#pragma once
#include "common.cuh"

#if FP8_CACHE
__device__ __forceinline__ unsigned pack_operand(float a, float b) { return pack_fp16(a, b); }
__device__ __forceinline__ float clamp_operand(float x) { return fminf(fmaxf(x, -65504.f), 65504.f); }
#else
__device__ __forceinline__ unsigned pack_operand(float a, float b) { return pack_elems(a, b); }
#endif
__device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if FP8_CACHE || defined(DTYPE_FP16)
  mma_fp16(d, a, b0, b1);
#else
  mma_bf16(d, a, b0, b1);
#endif
}
