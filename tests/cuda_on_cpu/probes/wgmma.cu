// Small kernels of one warpgroup that exercise the emulator's wgmma, right ones and wrong ones; tests/cuda_on_cpu/test_wgmma.py runs them.
#include "common.cuh"
#include "hopper.cuh"

// One product of operands that lie in shared memory as `image` says, at descriptors relative to its start. values: a (64x16, in registers)
// times b 16x64 along N; else a times b^T, 64x16 and 128x16 along K.
extern "C" __global__ void __launch_bounds__(128) by_descriptor(const uint4* image, int pieces, long long a, long long b, int values,
                                                                const elem* in_registers, float* out) {
  DYNAMIC_SHARED(shared);
  const int w = threadIdx.x >> 5, g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, row = 16 * w + g;
  for (int i = threadIdx.x; i < pieces; i += 128) cp_async16(shared + 16 * i, image + i, true);
  cp_async_commit();
  cp_async_wait<0>();
  fence_proxy_async();
  __syncthreads();
  const unsigned long long base = matrix_descriptor(shared, 0, 0) & 0x3fff;
  wgmma_fence();
  if (values) {
    unsigned r[4];
    float d[8][4];
    for (int i = 0; i < 4; i++) r[i] = *reinterpret_cast<const unsigned*>(in_registers + (row + 8 * (i & 1)) * 16 + 2 * t + 8 * (i >> 1));
    wgmma_values(d, r, b + base, false);
    wgmma_commit();
    wgmma_wait<0>();
    settle(d);
    for (int i = 0; i < 32; i++) out[(row + 8 * (i >> 1 & 1)) * 64 + i / 4 * 8 + 2 * t + (i & 1)] = d[i / 4][i & 3];
  } else {
    float d[16][4];
    wgmma_keys(d, a + base, b + base, false);
    wgmma_commit();
    wgmma_wait<0>();
    settle(d);
    for (int i = 0; i < 64; i++) out[(row + 8 * (i >> 1 & 1)) * 128 + i / 4 * 8 + 2 * t + (i & 1)] = d[i / 4][i & 3];
  }
}

// s = q k^T and o = elem(s) v, q 64x64, k and v 128x64, as attention does it: two groups of chained products, the second while the first is
// read. A second warpgroup is the producer: it copies by way of an mbarrier; a third gives its registers up and ends. `fault` is one
// of the mistakes below.
enum Fault {
  NONE, NO_PROXY_FENCE, NO_FENCE, NO_COMMIT, NO_WAIT, WAIT_ONE_SHORT, OVERWRITTEN, SUMS_TOUCHED, OPERAND_TOUCHED, WRONG_STRIDE, DISAGREE,
  UNSWIZZLED, FENCE_TOO_EARLY, NEVER_COPIED, REGISTERS
};
extern "C" __global__ void __launch_bounds__(384) two_products(const elem* q, const elem* k, const elem* v, float* s_out, float* o_out,
                                                               int fault) {
  DYNAMIC_SHARED(shared);
  __shared__ __align__(8) mbarrier_t arrived, released;
  unsigned char *queries = shared, *keys = shared + 8192, *values = keys + 16384;
  if (threadIdx.x == 0) {
    mbarrier_init(&arrived, 128);
    mbarrier_init(&released, 128);
  }
  __syncthreads();
  auto copy = [&](unsigned char* to, const elem* from, int rows) {
    for (int i = threadIdx.x & 127; i < rows * 8; i += 128)
      cp_async16(to + (fault == UNSWIZZLED ? unsigned(i * 16) : swizzled(i / 8, i % 8)), from + i * 8, true);
  };
  if (threadIdx.x >= 128) {
    if (fault != REGISTERS) keep_registers<40>();
    if (threadIdx.x >= 256) return;
    copy(queries, q, 64);
    copy(keys, k, 128);
    if (fault != NEVER_COPIED) copy(values, v, 128);
    cp_async_mbarrier_arrive(&arrived);
    mbarrier_wait(&released, 0);
    copy(keys, v, 128);   // the next tile would come here
    return;
  }
  take_registers<232>();
  const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, row = (threadIdx.x >> 5) * 16 + g;
  const unsigned stride = fault == WRONG_STRIDE ? 512 : 1024;
  const unsigned long long a = matrix_descriptor(queries, 16, stride), b = matrix_descriptor(keys, 16, 1024),
                           c = matrix_descriptor(values + (fault == DISAGREE ? threadIdx.x / 64 * 1024 : 0), 16384, 1024);
  if (fault == FENCE_TOO_EARLY) fence_proxy_async();
  mbarrier_wait(&arrived, 0);
  if (fault != NO_PROXY_FENCE && fault != FENCE_TOO_EARLY) fence_proxy_async();
  float s[16][4], o[8][4];
  unsigned p[8][4];
  for (int i = 0; i < 32; i++) o[i / 4][i & 3] = 1.f;   // of which 1 must be taken off again
  if (fault != NO_FENCE) wgmma_fence();
#pragma unroll
  for (int i = 0; i < 4; i++) wgmma_keys(s, advance(a, 32 * i), advance(b, 32 * i), i > 0);
  if (fault != NO_COMMIT) wgmma_commit();
  if (fault == SUMS_TOUCHED) s[3][1] = 0.f;
  if (fault == OVERWRITTEN) mbarrier_arrive(&released);
  if (fault != NO_WAIT) wgmma_wait<0>();
  settle(s);
  if (fault != OVERWRITTEN) mbarrier_arrive(&released);
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const float* pair = &s[i / 4 * 2 + (i >> 1 & 1)][(i & 1) * 2];
    p[i / 4][i & 3] = pack_elems(pair[0], pair[1]);
  }
  wgmma_fence();
#pragma unroll
  for (int i = 0; i < 8; i++) wgmma_values(o, p[i], advance(c, 2048 * i), true);
  wgmma_commit();
  if (fault == OPERAND_TOUCHED) p[2][1] = 0u;
  for (int i = 0; i < 64; i++) s_out[(row + 8 * (i >> 1 & 1)) * 128 + i / 4 * 8 + 2 * t + (i & 1)] = s[i / 4][i & 3];
  if (fault == WAIT_ONE_SHORT) wgmma_wait<1>();
  else wgmma_wait<0>();
  settle(o);
  for (int i = 0; i < 32; i++) o_out[(row + 8 * (i >> 1 & 1)) * 64 + i / 4 * 8 + 2 * t + (i & 1)] = o[i / 4][i & 3] - 1.f;
}
