// The merge of a request's splits, which every attention kernel that splits ends with.
#pragma once
#include "common.cuh"

// merges[i] = (first item, end item, query, unused): out[query] from the partial results of those items, in their order. No item: zeros;
// query < 0: padding. sinks elem [heads] or null: a score per head that takes part in the sum and has no value. DIM numbers per head.
// One warp per (i, head), four warps per block.
template <int DIM>
__device__ __forceinline__ void merge_splits_of(const float* __restrict__ partial_out, const float* __restrict__ partial_lse,
                                                const int4* __restrict__ merges, const elem* __restrict__ sinks, elem* __restrict__ out,
                                                int heads, int total) {
  const int i = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
  if (i >= total) return;
  const int4 merge = merges[i / heads];
  const int head = i % heads;
  if (merge.z < 0) return;
#pragma unroll 1
  for (int d = lane * 4; d < DIM; d += 128) {
    float highest = sinks ? to_float(sinks[head]) * LOG2E : NEG_BIG, sum = sinks ? 1.f : 0.f;
    float4 value = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 2   // more of them spilled on sm_90
    for (int item = merge.x; item < merge.y; item++) {
      const size_t place = static_cast<size_t>(item) * heads + head;
      const float lse = partial_lse[place], higher = fmaxf(highest, lse), old = ex2(highest - higher), now = ex2(lse - higher);
      const float4 v = *reinterpret_cast<const float4*>(partial_out + place * DIM + d);
      value = make_float4(value.x * old + v.x * now, value.y * old + v.y * now, value.z * old + v.z * now, value.w * old + v.w * now);
      sum = sum * old + now;
      highest = higher;
    }
    const float inverse = sum > 0.f ? 1.f / sum : 0.f;
    uint2 packed;
    packed.x = pack_elems(value.x * inverse, value.y * inverse);
    packed.y = pack_elems(value.z * inverse, value.w * inverse);
    *reinterpret_cast<uint2*>(out + (static_cast<size_t>(merge.z) * heads + head) * DIM + d) = packed;
  }
}
