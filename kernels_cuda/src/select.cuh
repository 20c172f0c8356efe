// What the sampler's kernels share: an order of logits as integers, weights whose sums are exact, Philox, and selection by radix.
//
// Nothing here adds floating-point numbers. Weights are integers, multiples of a quantum so coarse that a whole vocabulary's sum fits 53
// bits (the same numbers as gpu_workers.sampling.exact), so sums, histograms and prefix sums are the same in any order, for any number of
// blocks and beside any other rows; atomics on them are as good as a fixed tree.
#pragma once
#include "common.cuh"

typedef unsigned long long u64;

#if defined(LOGITS_FP32)
typedef float logit;
__device__ __forceinline__ float to_logit(logit x) { return x; }
#else
typedef elem logit;
__device__ __forceinline__ float to_logit(logit x) { return to_float(x); }
#endif

#define THREADS 512         // of a block that selects: one segment of an inverse CDF and four bins each
#define WARPS (THREADS / 32)
#define BINS 2048           // of a radix of 11 bits
#define RANK_OF_INF 0x007fffffu
#define RANK_OF_MINUS_INF 0xff800000u
#define NO_BEST 0xffffffffffffffffull
#define MINUS_INF __uint_as_float(0xff800000u)
#define NOT_A_NUMBER __uint_as_float(0x7fc00000u)

// Ranks order logits from large to small: x > y exactly when rank(x) < rank(y); equal zeros have one rank; NaN comes first of all.
__device__ __forceinline__ unsigned rank_of(float x) {
  const unsigned bits = __float_as_uint(x + 0.f);   // -0 becomes +0
  return x != x ? 0u : bits & 0x80000000u ? bits : 0x7fffffffu - bits;
}
__device__ __forceinline__ float logit_of(unsigned rank) { return __uint_as_float(rank & 0x80000000u ? rank : 0x7fffffffu - rank); }
// Neither NaN nor infinite.
__device__ __forceinline__ bool is_finite_rank(unsigned rank) { return rank > RANK_OF_INF && rank < RANK_OF_MINUS_INF; }
// A candidate as one number: the smallest is the largest logit, of equal ones that with the lowest id.
__device__ __forceinline__ u64 candidate(unsigned rank, int id) { return static_cast<u64>(rank) << 32 | static_cast<unsigned>(id); }

// exp(distance / temperature) for distance <= 0 as a count of quanta, 2^quantum_bits to 1, rounded to nearest even; 0 where below min_p.
__device__ __forceinline__ u64 weight_of(float distance, float temperature, float min_p, float quanta) {
  const float weight = expf(distance / temperature);
  return weight >= min_p ? static_cast<u64>(llrintf(weight * quanta)) : 0ull;   // scaling by a power of two is exact
}

// Philox-4x32-10 (Salmon et al. 2011): 52 bits for a counter (position, stream) under a key, as gpu_workers.sampling.philox has them.
__device__ __forceinline__ u64 philox52(u64 seed, u64 position, unsigned stream) {
  unsigned c0 = static_cast<unsigned>(position), c1 = static_cast<unsigned>(position >> 32), c2 = stream, c3 = 0;
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0;
    c1 = low1;
    c2 = high0 ^ c3 ^ k1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return static_cast<u64>(c0 >> 6) << 26 | c1 >> 6;
}

// Smallest over the block, for all of it; `scratch` is u64[32] in shared memory, free again when the call returns.
__device__ __forceinline__ u64 block_min(u64 v, u64* scratch) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) >> 5;
#pragma unroll
  for (int m = 16; m; m >>= 1) v = min(v, __shfl_xor_sync(FULL_WARP, v, m));
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  v = lane < warps ? scratch[lane] : NO_BEST;
#pragma unroll
  for (int m = 16; m; m >>= 1) v = min(v, __shfl_xor_sync(FULL_WARP, v, m));
  __syncthreads();
  return v;
}
__device__ __forceinline__ u64 warp_scan(u64 v) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const u64 other = __shfl_up_sync(FULL_WARP, v, d);
    if (lane >= d) v += other;
  }
  return v;
}
// Sum of v over this thread and those before it; `total` gets the block's. THREADS threads; scratch as for block_min.
__device__ __forceinline__ u64 block_scan(u64 v, u64* scratch, u64& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  v = warp_scan(v);
  if (lane == 31) scratch[warp] = v;
  __syncthreads();
  const u64 sums = warp_scan(lane < WARPS ? scratch[lane] : 0ull);
  total = __shfl_sync(FULL_WARP, sums, WARPS - 1);
  const u64 before = __shfl_sync(FULL_WARP, sums, warp > 0 ? warp - 1 : 0);
  __syncthreads();
  return v + (warp > 0 ? before : 0ull);
}

struct Selected {
  unsigned key;   // the smallest at which the sum of values over keys up to it reaches what is wanted
  u64 before, at; // the sums over smaller keys, and over this key
};
// Radix select, 11, 11 and 10 bits a pass, over i < count: one pass over all of it with a histogram, two more of which only few elements
// pass the first test. key_of(i, x), value_of(i, x, key) of x = load(i); wanted_of(total) is clamped to 1 .. total, total must not be 0.
// The whole block calls it; bins u64[BINS]; scratch u64[32], which may be used again after a barrier (the next pass has two of them).
template <class Load, class Key, class Value, class Wanted>
__device__ __forceinline__ Selected select_key(int count, u64* bins, u64* scratch, Load load, Key key_of, Value value_of,
                                               Wanted wanted_of) {
  Selected found{0u, 0ull, 0ull};
  unsigned known = 0;   // bits of the key that are settled
  u64 wanted = 0;
#pragma unroll 1
  for (int pass = 0; pass < 3; pass++) {
    const int shift = pass == 0 ? 21 : pass == 1 ? 10 : 0;
    const unsigned digits = pass == 2 ? 1023u : 2047u;
    for (int b = threadIdx.x; b < BINS; b += THREADS) bins[b] = 0;
    __syncthreads();   // all bins are empty
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += THREADS) {
      const float x = load(i);
      const unsigned key = key_of(i, x);
      if ((key & known) == found.key) {
        const u64 value = value_of(i, x, key);
        if (value) atomicAdd(&bins[key >> shift & digits], value);
      }
    }
    __syncthreads();   // all values are in
    const int first = threadIdx.x * (BINS / THREADS);
    u64 mine = 0, total;
#pragma unroll
    for (int b = 0; b < BINS / THREADS; b++) mine += bins[first + b];
    u64 below = block_scan(mine, scratch, total) - mine + found.before;
    if (pass == 0) {
      wanted = wanted_of(total);
      wanted = wanted < 1 ? 1 : wanted > total ? total : wanted;
    }
    if (below < wanted && wanted <= below + mine) {   // true of one thread
      int b = first;
      while (below + bins[b] < wanted) below += bins[b++];
      scratch[0] = static_cast<u64>(b);
      scratch[1] = below;
      scratch[2] = bins[b];
    }
    __syncthreads();   // what was found is there
    found.key |= static_cast<unsigned>(scratch[0]) << shift;
    found.before = scratch[1];
    found.at = scratch[2];
    known |= digits << shift;
  }
  return found;
}
