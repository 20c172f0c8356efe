// The worker's persistent batch on the device: plan columns applied to it, and a step's inputs gathered from it.
//
// The ladder
//   1. reference.gather_inputs: plain torch, a loop over rows.
//   2. torch on the device: repeat_interleave, cumsum, gathers: a dozen launches, and one of them waits for the host.
//   3. this: a scan and a gather. No count passes through the host: kernels read them where the plan's header lies on the
//      device, and a graph's grid is as large as its bucket. Expected (not measured): 2-3 microseconds each, all of it launch latency.
// Integers only, no atomics: the result does not depend on any order.
#include "common.cuh"

#define DEVICE_TOKEN 2   // ipc.arena.RowFlag.DEVICE_TOKEN, which the launcher checks

// tables[row[i]][index[i]] = id[i] for i < *count. Any grid.
extern "C" __global__ void __launch_bounds__(256)
apply_block_updates(int* __restrict__ tables, int blocks_per_row, const int* __restrict__ row, const int* __restrict__ index,
                    const int* __restrict__ id, const long long* __restrict__ count) {
  const int n = static_cast<int>(*count);
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    tables[static_cast<size_t>(row[i]) * blocks_per_row + index[i]] = id[i];
}

// last_token[row[i]] = token[i] for i < *count where token[i] >= 0. Any grid.
extern "C" __global__ void __launch_bounds__(256)
remember_tokens(int* __restrict__ last_token, const int* __restrict__ row, const int* __restrict__ token, const long long* __restrict__ count) {
  const int n = static_cast<int>(*count);
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
    if (token[i] >= 0) last_token[row[i]] = token[i];
}

// The sum of `v` over this lane and those before it.
__device__ __forceinline__ int inclusive_sum(int v, int lane) {
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const int before = __shfl_up_sync(FULL_WARP, v, d);
    if (lane >= d) v += before;
  }
  return v;
}

// Exclusive sums over the plan's rows: query_starts[i] = tokens of rows before i, given_starts[i] = of those rows only the tokens that
// the plan itself gives. query_starts[n .. capacity] = all tokens, so that rows of a padded batch are empty. One block of 1,024 threads.
extern "C" __global__ void __launch_bounds__(1024)
scan_rows(const int* __restrict__ num_new, const int* __restrict__ flags, const long long* __restrict__ num_rows, int capacity,
          int* __restrict__ query_starts, int* __restrict__ given_starts) {
  __shared__ int warp_all[32], warp_given[32];
  const int n = static_cast<int>(*num_rows), lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int all_before = 0, given_before = 0;   // of the chunks of 1,024 rows done
  for (int chunk = 0; chunk <= capacity; chunk += 1024) {
    const int i = chunk + threadIdx.x;
    const int mine = i < n ? num_new[i] : 0;
    const int mine_given = i < n && !(flags[i] & DEVICE_TOKEN) ? mine : 0;
    int all = inclusive_sum(mine, lane), given = inclusive_sum(mine_given, lane);
    if (lane == 31) {
      warp_all[warp] = all;
      warp_given[warp] = given;
    }
    __syncthreads();
    const int lanes_all = warp_all[lane], lanes_given = warp_given[lane];   // the sums of warp number `lane`
    const int sum_all = inclusive_sum(lanes_all, lane), sum_given = inclusive_sum(lanes_given, lane);
    all += __shfl_sync(FULL_WARP, sum_all - lanes_all, warp);
    given += __shfl_sync(FULL_WARP, sum_given - lanes_given, warp);
    const int chunk_all = __shfl_sync(FULL_WARP, sum_all, 31), chunk_given = __shfl_sync(FULL_WARP, sum_given, 31);
    if (i <= capacity) {
      query_starts[i] = all_before + all - mine;
      if (i < capacity) given_starts[i] = given_before + given - mine_given;
    }
    all_before += chunk_all;
    given_before += chunk_given;
    __syncthreads();   // the sums of this chunk have been read
  }
}

// For each token t of the step: its id, its position, its slot in the KV cache and the plan row it belongs to. Tokens past the step's (a
// graph's bucket is larger than the step) get id 0, position 0, slot -1, row -1. seq_lens[i] = start + num_new of plan row i, 0 past the last.
// Grid covers max(padded, capacity) threads.
extern "C" __global__ void __launch_bounds__(128)
gather_inputs(const int* __restrict__ row, const int* __restrict__ num_new, const int* __restrict__ start, const int* __restrict__ flags,
              const int* __restrict__ given, const long long* __restrict__ num_rows, const int* __restrict__ query_starts,
              const int* __restrict__ given_starts, const int* __restrict__ tables, const int* __restrict__ last_token, int blocks_per_row,
              int block_size, int capacity, int padded, int* __restrict__ token_ids, int* __restrict__ positions, long long* __restrict__ slots,
              int* __restrict__ row_of_token, int* __restrict__ seq_lens) {
  const int t = blockIdx.x * blockDim.x + threadIdx.x;
  const int n = static_cast<int>(*num_rows);
  if (t < capacity) seq_lens[t] = t < n ? start[t] + num_new[t] : 0;
  if (t >= padded) return;
  if (t >= query_starts[n]) {
    token_ids[t] = 0;
    positions[t] = 0;
    slots[t] = -1;
    row_of_token[t] = -1;
    return;
  }
  int low = 0, high = n;   // the last row that starts at or before t: query_starts[low] <= t < query_starts[high]
  while (high - low > 1) {
    const int middle = (low + high) >> 1;
    if (query_starts[middle] <= t) low = middle;
    else high = middle;
  }
  const int offset = t - query_starts[low], position = start[low] + offset, place = row[low];
  token_ids[t] = flags[low] & DEVICE_TOKEN ? last_token[place] : given[given_starts[low] + offset];
  positions[t] = position;
  const long long block = tables[static_cast<size_t>(place) * blocks_per_row + position / block_size];
  slots[t] = block * block_size + position % block_size;
  row_of_token[t] = low;
}
