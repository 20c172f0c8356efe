// Paged attention for chunks of new tokens (prefill) with Hopper's warpgroup products: what paged_prefill.cu computes, from the same plan.
//
// The ladder goes on from paged_prefill.cu's (mma.sync, whose limit is expected to be shared memory). What each step is for; none of it
// is measured on a GPU yet, and until it is, paged_prefill.cu is what runs unless this is asked for:
//   - wgmma reads Q, K and V in shared memory itself: 64 rows share one reading of a tile, where a warp of mma.sync had 16 rows and needed
//     an ldmatrix for every two products. Shared memory is then no limit; P stays in registers, as the operand A of P V, without a shuffle;
//   - a warpgroup of producers copies (cp.async by the block table: pages of 16 tokens are too small and too scattered for a tensor map)
//     and two warpgroups of consumers compute, so the addresses of the copies cost the products nothing. They meet at mbarriers only, where
//     copies arrive by themselves: no barrier of the whole block in the loop;
//   - setmaxnreg moves the producers' registers to the consumers: scores, weights and result of 64 rows need 160 per thread at 128
//     dimensions;
//   - a warpgroup issues Q K^T of the next tile before P V of the one before, and its softmax runs while P V does; besides, the
//     exponentials of one warpgroup run under the other's products. K and V have barriers of their own, so each is given back as soon as it
//     was read;
//   - tiles of K and V are 128 tokens: eight products in a row per operand, and half as many maxima and rescalings as with 64;
//   - a warpgroup computes only tiles that some row of its own sees, and compares positions only where an edge runs through.
//   Expected: 60-70 % of the bf16 rate of an H100 or H200 at long contexts. The next steps would be an order of turns between the two
//   warpgroups, results written through shared memory, and blocks that take several items.
//
// One row's bits: as in paged_prefill.cu, for the same reason, so they depend on neither the batch nor the cuts. They are not those of that
// kernel, whose tiles are smaller.
//
// Method: online softmax (arXiv:1805.02867); products and softmax overlapped by warpgroups: FlashAttention-3 (arXiv:2407.08608); pages:
// arXiv:2309.06180. Descriptors and fences: hopper.cuh.
//
// Macros: HEAD_DIM (64 or 128), STAGES (tiles of K, and of V, in shared memory).
#include "hopper.cuh"
#include "softmax.cuh"

#define WARPGROUP 128
#define CONSUMERS 2                       // warpgroups that compute, with 64 rows each
#define ROWS (CONSUMERS * 64)             // packed rows of a block: row p is token p / group, head p % group
#define THREADS ((1 + CONSUMERS) * WARPGROUP)
#define KV_TILE 128
#define PIECES (HEAD_DIM / 8)             // 16-byte pieces of a token's keys
#define PANEL (128 * SWIZZLED_ROW)        // 128 rows (of Q, or tokens) x 64 dimensions
#define TILE_BYTES (HEAD_DIM / 64 * PANEL)
#define COPY_ROWS 16                      // that lie in one page
#define LANE_ROWS (32 / PIECES)           // that a warp copies at once
static_assert(HEAD_DIM % 64 == 0 && ROWS == 128 && KV_TILE == 128, "a panel is 128 rows");

// Arguments: see paged_prefill.cu; without an fp8 cache's scales. Grid items * kv_heads, 3 * 128 threads. Shared memory: Q, the stages of K
// and of V, and the barriers, from the next multiple of 1024 bytes on.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
paged_prefill_wgmma(const elem* __restrict__ q, const unsigned char* __restrict__ k_cache, const unsigned char* __restrict__ v_cache,
                    const int* __restrict__ tables, const int2* __restrict__ work, const int4* __restrict__ chunks,
                    const elem* __restrict__ sinks, elem* __restrict__ out, int blocks_per_row, int kv_heads, int group, int block_size,
                    int window, float factor, float cap, float cap_rate) {
  DYNAMIC_SHARED(unaligned);
  unsigned char* const queries = unaligned + (-reinterpret_cast<size_t>(unaligned) & 1023);
  unsigned char* const keys = queries + TILE_BYTES;                  // [STAGES]
  unsigned char* const values = keys + STAGES * TILE_BYTES;          // [STAGES]
  mbarrier_t* const keys_full = reinterpret_cast<mbarrier_t*>(values + STAGES * TILE_BYTES);   // [STAGES] each
  mbarrier_t* const values_full = keys_full + STAGES;
  mbarrier_t* const keys_free = values_full + STAGES;
  mbarrier_t* const values_free = keys_free + STAGES;

  const int2 item = work[blockIdx.x / kv_heads];
  if (item.x < 0) return;
  const int kv_head = blockIdx.x % kv_heads;
  const int4 chunk = chunks[item.x];
  const int past = chunk.z, total = chunk.y * group, base = item.y * ROWS;
  const int begin = window ? max(0, past + base / group - window + 1) : 0;   // positions that the block needs: begin <= j < end
  const int end = past + (min(base + ROWS, total) - 1) / group + 1;
  const int first = begin / KV_TILE, last = (end + KV_TILE - 1) / KV_TILE;   // tiles
  const int warp = (threadIdx.x & (WARPGROUP - 1)) >> 5, lane = threadIdx.x & 31;

  if (threadIdx.x == 0) {
    const int readers = 4 * (base + 64 < total ? 2 : 1);   // warps of the consumers that have rows
    for (int s = 0; s < STAGES; s++) {
      mbarrier_init(keys_full + s, WARPGROUP);
      mbarrier_init(values_full + s, WARPGROUP);
      mbarrier_init(keys_free + s, readers);
      mbarrier_init(values_free + s, readers);
    }
  }
  __syncthreads();

  if (threadIdx.x < WARPGROUP) {   // ---------------------------------------------------------------- producers
    keep_registers<56>();
    const int piece = lane % PIECES, row_of_lane = lane / PIECES;
    const int panel = piece / 8 * PANEL;
    // Rows 32 * warp .. of Q. Rows past the chunk's end are zeros.
#pragma unroll 1
    for (int turn = 0; turn < 32 / LANE_ROWS; turn++) {
      const int row = warp * 32 + turn * LANE_ROWS + row_of_lane, p = min(base + row, total - 1), token = p / group;
      const int place = (chunk.x + token) * (kv_heads * group) + kv_head * group + (p - token * group);
      cp_async16(queries + panel + swizzled(row, piece & 7), q + static_cast<size_t>(place) * HEAD_DIM + piece * 8, base + row < total);
    }
    // Tokens 32 * warp .. of a tile are two runs of 16, each in one page. Those outside begin .. end are zeros; their table is not read.
    const int* const table = tables + static_cast<size_t>(chunk.w) * blocks_per_row;
    auto page_of = [&](int tile, int run) {
      const int token = tile * KV_TILE + warp * 32 + run * COPY_ROWS;
      return token < end && token + COPY_ROWS > begin ? table[token / block_size] : 0;
    };
    auto copy = [&](unsigned char* to, const unsigned char* cache, int tile, const int (&pages)[2]) {
#pragma unroll
      for (int run = 0; run < 2; run++) {
        const int row0 = warp * 32 + run * COPY_ROWS, token0 = tile * KV_TILE + row0;
        const size_t place = (static_cast<size_t>(pages[run]) * kv_heads + kv_head) * block_size + token0 % block_size;
        const unsigned char* from = cache + place * (HEAD_DIM * 2) + lane * 16;
#pragma unroll
        for (int turn = 0; turn < COPY_ROWS / LANE_ROWS; turn++) {
          const int row = turn * LANE_ROWS + row_of_lane, token = token0 + row;
          const bool valid = token >= begin && token < end;   // what others left in the page may be NaN, and 0 * NaN is NaN
          cp_async16(to + panel + row0 * SWIZZLED_ROW + swizzled(row, piece & 7), from + turn * 512, valid);
        }
      }
    };
    int pages[2] = {page_of(first, 0), page_of(first, 1)}, next_pages[2] = {0, 0};
    copy(keys, k_cache, first, pages);
    cp_async_mbarrier_arrive(keys_full);   // with Q
    for (int tile = first; tile < last; tile++) {
      const unsigned i = tile - first, stage = i % STAGES;
      if (tile + 1 < last) {
        const unsigned next = (i + 1) % STAGES;
        next_pages[0] = page_of(tile + 1, 0), next_pages[1] = page_of(tile + 1, 1);
        if (i + 1 >= STAGES) mbarrier_wait(keys_free + next, (i + 1) / STAGES - 1 & 1);
        copy(keys + next * TILE_BYTES, k_cache, tile + 1, next_pages);
        cp_async_mbarrier_arrive(keys_full + next);
      }
      if (i >= STAGES) mbarrier_wait(values_free + stage, i / STAGES - 1 & 1);
      copy(values + stage * TILE_BYTES, v_cache, tile, pages);
      cp_async_mbarrier_arrive(values_full + stage);
      pages[0] = next_pages[0], pages[1] = next_pages[1];
    }
    cp_async_commit();
    cp_async_wait<0>();   // a thread does not end before its copies
    return;
  }

  // ---------------------------------------------------------------- consumers
  take_registers<224>();
  const int half = threadIdx.x / WARPGROUP - 1;
  const int group_base = base + half * 64, warp_base = group_base + warp * 16, g = lane >> 2, t = lane & 3;
  if (group_base >= total) return;
  // Tiles that some row of the warpgroup sees, and positions of the first and last row of this warp. If the other warpgroup sees one more at
  // the end, that is the block's last: nothing is to be copied to its place.
  const int seen_first = window ? max(0, past + group_base / group - window + 1) / KV_TILE : 0;
  const int seen_last = (past + (min(group_base + 64, total) - 1) / group) / KV_TILE + 1;
  const int lowest = past + warp_base / group, highest = past + (warp_base + 15) / group;
  const int position[2] = {past + (warp_base + g) / group, past + (warp_base + g + 8) / group};   // of rows g and g + 8

  auto stage_of = [&](int tile) { return static_cast<unsigned>(tile - first) % STAGES; };
  auto wait_for = [&](mbarrier_t* full, int tile) {
    mbarrier_wait(full + stage_of(tile), static_cast<unsigned>(tile - first) / STAGES & 1);
    fence_proxy_async();
  };
  auto give_back = [&](mbarrier_t* free, int tile) {
    __syncwarp();   // a lane that still waited for this tile would miss the phase if the next one came and went
    if (lane == 0) mbarrier_arrive(free + stage_of(tile));
  };

  float s[KV_TILE / 8][4];             // scores, then weights: rows g and g + 8, tokens 2t and 2t + 1 of each 8
  unsigned weights[KV_TILE / 16][4];   // as operand A
  float result[HEAD_DIM / 8][4];       // rows g and g + 8, dimensions 2t and 2t + 1 of each 8
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) result[n][c] = 0.f;
  float top[2] = {NEG_BIG, NEG_BIG}, sum[2] = {0.f, 0.f}, shrink[2];   // of rows g and g + 8; sum: this lane's columns only

  const unsigned long long query = matrix_descriptor(queries + half * 64 * SWIZZLED_ROW, 16, 8 * SWIZZLED_ROW);
  const unsigned long long key = matrix_descriptor(keys, 16, 8 * SWIZZLED_ROW), value = matrix_descriptor(values, PANEL, 8 * SWIZZLED_ROW);
  auto multiply_keys = [&](int tile) {
    const unsigned long long tile_keys = advance(key, stage_of(tile) * TILE_BYTES);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++)
      wgmma_keys(s, advance(query, k / 4 * PANEL + k % 4 * 32), advance(tile_keys, k / 4 * PANEL + k % 4 * 32), k > 0);
    wgmma_commit();
  };
  auto multiply_values = [&](int tile) {
    const unsigned long long tile_values = advance(value, stage_of(tile) * TILE_BYTES);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < KV_TILE / 16; k++) wgmma_values(result, weights[k], advance(tile_values, k * 16 * SWIZZLED_ROW), true);
    wgmma_commit();
  };
  // Scores of a tile to weights, in s; shrink: what result has to be multiplied by.
  auto weigh = [&](int tile) {
    const int token0 = tile * KV_TILE;
    if (cap > 0.f) cap_scores(s, cap, cap_rate);
    if (token0 + KV_TILE - 1 > lowest || (window && token0 <= highest - window)) mask_scores(s, position, token0, window, t);
#pragma unroll
    for (int h = 0; h < 2; h++) shrink[h] = weigh_scores(s, h, factor, top[h], sum[h]);
  };
  auto pack_weights = [&]() {
#pragma unroll
    for (int k = 0; k < KV_TILE / 16; k++)
#pragma unroll
      for (int r = 0; r < 4; r++) weights[k][r] = pack_elems(s[2 * k + (r >> 1)][2 * (r & 1)], s[2 * k + (r >> 1)][2 * (r & 1) + 1]);
  };

  for (int tile = first; tile < seen_first; tile++) {   // what the other warpgroup alone sees, at most one tile
    wait_for(keys_full, tile);
    give_back(keys_free, tile);
    wait_for(values_full, tile);
    give_back(values_free, tile);
  }
  wait_for(keys_full, seen_first);
  multiply_keys(seen_first);
  wgmma_wait<0>();
  settle(s);
  give_back(keys_free, seen_first);
  weigh(seen_first);
  pack_weights();
  for (int tile = seen_first + 1; tile < seen_last; tile++) {
    wait_for(keys_full, tile);
    multiply_keys(tile);
    wait_for(values_full, tile - 1);
    multiply_values(tile - 1);
    wgmma_wait<1>();
    settle(s);
    give_back(keys_free, tile);
    weigh(tile);
    wgmma_wait<0>();
    settle(result);
    give_back(values_free, tile - 1);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) result[n][c] *= shrink[c >> 1];
    pack_weights();
  }
  wait_for(values_full, seen_last - 1);
  multiply_values(seen_last - 1);
  wgmma_wait<0>();
  settle(result);
  give_back(values_free, seen_last - 1);

#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 1);
    sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 2);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int p = warp_base + g + 8 * h, token = position[h] - past, head = kv_head * group + (p - token * group);
    if (p >= total) continue;
    float finish = 1.f / sum[h];
    if (sinks) {
      const float mine = top[h] * factor, other = to_float(sinks[head]) * LOG2E, highest_score = fmaxf(mine, other);
      finish = ex2(mine - highest_score) / fmaf(sum[h], ex2(mine - highest_score), ex2(other - highest_score));
    }
    elem* to = out + (static_cast<size_t>(chunk.x + token) * (kv_heads * group) + head) * HEAD_DIM + 2 * t;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++)
      *reinterpret_cast<unsigned*>(to + n * 8) = pack_elems(result[n][2 * h] * finish, result[n][2 * h + 1] * finish);
  }
}
