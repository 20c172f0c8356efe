// Small kernels that exercise the emulator itself, right ones and wrong ones; tests/cuda_on_cpu/test_emulator.py runs them.
#include "common.cuh"

extern "C" __global__ void indices(int* out) {
  const int threads = blockDim.x * blockDim.y * blockDim.z;
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[block * threads + thread] = block * 10000 + thread;
}
extern "C" __global__ void votes(unsigned* out) {
  const int lane = threadIdx.x & 31;
  out[0 * blockDim.x + threadIdx.x] = __ballot_sync(FULL_WARP, lane % 3 == 0);
  out[1 * blockDim.x + threadIdx.x] = __reduce_add_sync(FULL_WARP, lane);
  out[2 * blockDim.x + threadIdx.x] = __match_any_sync(FULL_WARP, lane / 4);
  out[3 * blockDim.x + threadIdx.x] = __shfl_down_sync(FULL_WARP, lane, 5, 16);
  out[4 * blockDim.x + threadIdx.x] = __syncthreads_count(threadIdx.x % 5 == 0);
  out[5 * blockDim.x + threadIdx.x] = __any_sync(FULL_WARP, lane == 40) * 2 + __all_sync(FULL_WARP, lane < 32);
}
// The sum of n * 512 floats, by bulk copies through a ring of two stages with an mbarrier each.
extern "C" __global__ void __launch_bounds__(128) ring_sum(const float* x, float* sum, int n) {
  __shared__ __align__(128) float ring[2][512];
  __shared__ __align__(8) mbarrier_t arrived[2];
  auto fetch = [&](int i) {
    mbarrier_arrive_expect(&arrived[i & 1], 2048);
    bulk_copy(ring[i & 1], x + i * 512, 2048, &arrived[i & 1]);
  };
  if (threadIdx.x == 0) {
    for (int s = 0; s < 2; s++) mbarrier_init(&arrived[s], 1);
  }
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < 2 && i < n; i++) fetch(i);
  float mine = 0.f;
  for (int i = 0; i < n; i++) {
    mbarrier_wait(&arrived[i & 1], i >> 1 & 1);
    for (int k = threadIdx.x; k < 512; k += 128) mine += ring[i & 1][k];
    __syncthreads();
    if (threadIdx.x == 0 && i + 2 < n) fetch(i + 2);
  }
  atomicAdd(sum, mine);
}
extern "C" __global__ void counts(const int* ids, int n, int* bins, int* highest) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  atomicAdd(bins + ids[i], 1);
  atomicMax(highest, ids[i]);
}
// C = A * B of 16x16 and 16x8 numbers, with ldmatrix for A (row-major) and its transposing form for B, which lies as [k][n].
extern "C" __global__ void tensor_core(const elem* a, const elem* b, float* c) {
  __shared__ __align__(16) elem sa[16][16], sb[16][8];
  const int lane = threadIdx.x, g = lane >> 2, t = lane & 3;
  for (int i = lane; i < 256; i += 32) sa[i / 16][i % 16] = a[i];
  for (int i = lane; i < 128; i += 32) sb[i / 8][i % 8] = b[i];
  __syncwarp();
  unsigned fa[4], fb[2];
  float d[4] = {0.f, 0.f, 0.f, 0.f};
  ldmatrix_x4(fa, &sa[lane & 15][lane >> 4 << 3]);
  ldmatrix_x2_trans(fb, &sb[lane & 15][0]);
  mma_bf16(d, fa, fb[0], fb[1]);
  for (int i = 0; i < 4; i++) c[(g + 8 * (i >> 1)) * 8 + 2 * t + (i & 1)] = d[i];
}
extern "C" __global__ void to_e4m3(const float* x, unsigned char* by_wrapper, unsigned char* by_rounding, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    by_wrapper[i] = static_cast<unsigned char>(floats_to_e4m3x2(0.f, x[i]) >> 8);
    by_rounding[i] = static_cast<unsigned char>(e4m3_by_rounding(x[i]));
  }
}

// ---------------------------------------------------------------- wrong ones
extern "C" __global__ void stuck(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  else while (atomicAdd(out, 0) == 0) __nanosleep(100);
}
extern "C" __global__ void half_a_barrier() {
  if (threadIdx.x & 1) __syncwarp();
  else __syncthreads();
}
extern "C" __global__ void shuffle_in_a_branch(int* out) {
  int v = threadIdx.x;
  if (threadIdx.x < 16) v = __shfl_xor_sync(FULL_WARP, v, 1);
  else v = __ballot_sync(FULL_WARP, v);
  out[threadIdx.x] = v;
}
extern "C" __global__ void outside_its_mask(int* out) { out[threadIdx.x] = __shfl_sync(0xffffu, threadIdx.x, 0); }
extern "C" __global__ void past_dynamic_shared(int at, int write, float* out) {
  DYNAMIC_SHARED(shared);
  float* x = reinterpret_cast<float*>(shared);
  if (write) x[at] = 1.f;
  else *out = x[at];
}
extern "C" __global__ void unwritten_shared(float* out) {
  __shared__ float fixed[4];
  DYNAMIC_SHARED(shared);
  out[2 * blockIdx.x] = fixed[threadIdx.x];
  out[2 * blockIdx.x + 1] = reinterpret_cast<float*>(shared)[0];
  fixed[threadIdx.x] = 1.f;
  reinterpret_cast<float*>(shared)[0] = 1.f;
}
extern "C" __global__ void reads_before_the_copy_arrives(const float* from, float* out, int wait) {
  __shared__ __align__(16) float to[4];
  cp_async16(to, from, true);
  cp_async_commit();
  if (wait) cp_async_wait<0>();
  *out = to[3];
}
extern "C" __global__ void misaligned_copy(const float* from) {
  __shared__ __align__(16) float to[8];
  cp_async16(to + 1, from, true);
}
extern "C" __global__ void past_the_array(const float* x, int n, float* out) { *out = x[n]; }
extern "C" __global__ void unsynchronised(int* out) {
  __shared__ int x[64];
  x[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = x[63 - threadIdx.x];
}
