// What all kernels share: the activation type, 16-byte accesses, dynamic shared memory, reductions of a fixed order.
//
// A variant is chosen by macros: DTYPE_BF16=1 or DTYPE_FP16=1 selects `elem`.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "ptx.cuh"

// Dynamic shared memory as bytes, aligned for 16-byte and bulk copies. In the CPU tests it ends at a page that may not be touched.
#ifdef CUDA_ON_CPU
#define DYNAMIC_SHARED(name) unsigned char* name = reinterpret_cast<unsigned char*>(emu::dynamic_shared())
#else
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#endif

#define FULL_WARP 0xffffffffu
#define LOG2E 1.4426950408889634f
// Stands for minus infinity in running maxima: finite, so that the difference of two is 0 and not NaN.
#define NEG_BIG (-1e30f)

#if defined(DTYPE_FP16)
typedef __half elem;
__device__ __forceinline__ float to_float(elem x) { return __half2float(x); }
__device__ __forceinline__ elem to_elem(float x) { return __float2half_rn(x); }
#else
typedef __nv_bfloat16 elem;
__device__ __forceinline__ float to_float(elem x) { return __bfloat162float(x); }
__device__ __forceinline__ elem to_elem(float x) { return __float2bfloat16_rn(x); }
#endif

// Two neighbours as they stand in one 32-bit register, the first in the low half.
__device__ __forceinline__ unsigned pack_bf16(float a, float b) {
  __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<unsigned*>(&v);
}
__device__ __forceinline__ unsigned pack_fp16(float a, float b) {
  __half2 v = __floats2half2_rn(a, b);
  return *reinterpret_cast<unsigned*>(&v);
}
#if defined(DTYPE_FP16)
__device__ __forceinline__ unsigned pack_elems(float a, float b) { return pack_fp16(a, b); }
__device__ __forceinline__ float2 unpack_elems(unsigned pair) { return __half22float2(*reinterpret_cast<__half2*>(&pair)); }
#else
__device__ __forceinline__ unsigned pack_elems(float a, float b) { return pack_bf16(a, b); }
__device__ __forceinline__ float2 unpack_elems(unsigned pair) { return __bfloat1622float2(*reinterpret_cast<__nv_bfloat162*>(&pair)); }
#endif

// Eight elements of one 16-byte access.
__device__ __forceinline__ void unpack8(const uint4& raw, float (&x)[8]) {
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    float2 pair = unpack_elems(words[i]);
    x[2 * i] = pair.x;
    x[2 * i + 1] = pair.y;
  }
}
__device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
  return make_uint4(pack_elems(x[0], x[1]), pack_elems(x[2], x[3]), pack_elems(x[4], x[5]), pack_elems(x[6], x[7]));
}
__device__ __forceinline__ uint4 load16(const elem* p) { return *reinterpret_cast<const uint4*>(p); }
__device__ __forceinline__ void store16(elem* p, const uint4& v) { *reinterpret_cast<uint4*>(p) = v; }

// Sums and maxima over `WIDTH` neighbouring lanes, for all of them, always in the same order.
template <int WIDTH = 32> __device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int m = WIDTH / 2; m; m >>= 1) v += __shfl_xor_sync(FULL_WARP, v, m);
  return v;
}
template <int WIDTH = 32> __device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int m = WIDTH / 2; m; m >>= 1) v = fmaxf(v, __shfl_xor_sync(FULL_WARP, v, m));
  return v;
}
// Over a whole block of up to 32 full warps; `scratch` is float[32] in shared memory, free again when the call returns.
__device__ __forceinline__ float block_sum(float v, float* scratch) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
  v = warp_sum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = warp_sum(lane < warps ? scratch[lane] : 0.f);
  __syncthreads();
  return v;
}
