// Paged attention for chunks of new tokens (prefill): causal, over the chunk itself and everything cached before it.
//
// The ladder
//   1. reference.prefill_attention: plain torch, gathers the pages into a contiguous copy, all scores in memory.
//   2. naive: the decode kernel once per new token: reads K and V once per token.
//   3. this. What each step is for (the first is arithmetic, the rest are expectations; none measured on a GPU yet):
//      - a tile of 128 rows (token, head of the group) reads each K and V once for all its rows, and rows are packed whatever the group's size
//        is: a tile is full with 128 tokens of a group of 1 as with 16 tokens of a group of 8;
//      - Q, scores, probabilities and the result live in registers; the scores' accumulators are the operand A of P V without a shuffle;
//      - tiles of K and V come by cp.async through the block table, a tile ahead of their use and their page number another tile ahead;
//        each warp copies rows of one page only; one block barrier per tile;
//      - whole tiles after the causal end or before the window are never fetched; a warp also skips those its own 16 rows do not see, and
//        compares positions only on tiles that an edge runs through;
//      - rows of shared memory have an odd pitch in 16-byte chunks (see paged_decode.cu);
//      - the work list comes longest first, so the last blocks to run are the short ones.
//      Expected: 45-50 % of the bf16 rate of an H200; each ldmatrix feeds only two mma with 16 rows per warp, so shared memory is the limit
//      there, and wgmma the next step.
//
// One row's bits: K and V tiles begin at multiples of KV_TILE of the request's positions, and a tile that a row does not see leaves its sums
// exactly as they were. So they depend on the row's own position and cache alone: not on the batch, nor on how the prompt was cut.
//
// A row with one new token is a chunk as well (a mixed step in one launch), but all its tokens are read by one block per KV head: for long
// contexts paged_decode, which splits them, is the better one.
//
// Method: online softmax (arXiv:1805.02867) as in FlashAttention-2 (arXiv:2307.08691); pages: arXiv:2309.06180.
//
// fp8 cache: as in paged_decode.cu, e4m3 goes to fp16 exactly and q is taken as fp16.
//
// Macros: HEAD_DIM (a multiple of 16 up to 256), FP8_CACHE, KV_TILE (a multiple of 16 and of WARPS), WARPS, STAGES, MIN_BLOCKS (per SM).
#include "operands.cuh"
#include "softmax.cuh"

#define ROWS (WARPS * 16)              // packed rows of a block: row p is token p / group, head p % group
#define COPY_ROWS (KV_TILE / WARPS)    // of K and of V, that a warp copies: it divides 16 and thus every block size
#define KV_BYTES (FP8_CACHE ? 1 : 2)
#define ROW_BYTES (HEAD_DIM * KV_BYTES)
#define CHUNKS (ROW_BYTES / 16)
#define PITCH ((CHUNKS | 1) * 16)      // bytes between rows in shared memory
#define TILE_BYTES (KV_TILE * PITCH)
static_assert(KV_TILE % WARPS == 0 && KV_TILE % 16 == 0 && 16 % COPY_ROWS == 0, "a warp copies rows of one page");

// K^T of 16 dimensions x 16 tokens as two operands B, tokens 0-7 and 8-15. fp8: row 2t+j of the product stands for dimension 4t+j, row
// 2t+8+j for 4t+2+j.
__device__ __forceinline__ void load_keys(unsigned (&b)[4], const unsigned char* tile, int n, int k, int lane) {
#if FP8_CACHE
  const unsigned char* at = tile + (n * 16 + (lane >> 2)) * PITCH + k * 16 + (lane & 3) * 4;
  const unsigned low = *reinterpret_cast<const unsigned*>(at), high = *reinterpret_cast<const unsigned*>(at + 8 * PITCH);
  b[0] = e4m3x2_to_fp16x2(low & 0xffffu);
  b[1] = e4m3x2_to_fp16x2(low >> 16);
  b[2] = e4m3x2_to_fp16x2(high & 0xffffu);
  b[3] = e4m3x2_to_fp16x2(high >> 16);
#else
  ldmatrix_x4(b, tile + (n * 16 + (lane >> 4) * 8 + (lane & 7)) * PITCH + (2 * k + (lane >> 3 & 1)) * 16);
#endif
}
// V of 16 tokens x 16 dimensions as two operands B, dimensions 0-7 and 8-15. fp8: even dimensions and odd ones.
__device__ __forceinline__ void load_values(unsigned (&b)[4], const unsigned char* tile, int k, int n, int lane) {
#if FP8_CACHE
  unsigned r[2];
  ldmatrix_x2_trans(r, tile + (k * 16 + (lane & 15)) * PITCH + n * 16);
  b[0] = e4m3x2_to_fp16x2(__byte_perm(r[0], 0, 0x4420));
  b[1] = e4m3x2_to_fp16x2(__byte_perm(r[1], 0, 0x4420));
  b[2] = e4m3x2_to_fp16x2(__byte_perm(r[0], 0, 0x4431));
  b[3] = e4m3x2_to_fp16x2(__byte_perm(r[1], 0, 0x4431));
#else
  ldmatrix_x4_trans(b, tile + (k * 16 + (lane & 15)) * PITCH + (2 * n + (lane >> 4)) * 16);
#endif
}

// work[item] = (chunk, tile): rows tile * ROWS .. of the chunk; chunk < 0: padding. chunks[c] = (first, count, past, row): tokens
// first .. first + count of q and out are positions past .. past + count of tables[row], whose K and V are in the caches already.
// q, out [tokens][kv_heads * group][HEAD_DIM]; caches [blocks][kv_heads][block_size][HEAD_DIM]. sinks [kv_heads * group] or null: a score
// per head without a value. window: a token sees itself and window - 1 before it, 0 all. Products of q
// and k are scores after cap * tanh(cap_rate * product / 2) where cap > 0, and then 2^(factor * score) is a token's weight.
// k_scale, v_scale float [kv_heads] or null: what an fp8 cache's values are to be multiplied by.
// Grid items * kv_heads, WARPS * 32 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32, MIN_BLOCKS)
paged_prefill(const elem* __restrict__ q, const unsigned char* __restrict__ k_cache, const unsigned char* __restrict__ v_cache,
              const int* __restrict__ tables, const int2* __restrict__ work, const int4* __restrict__ chunks, const elem* __restrict__ sinks,
              elem* __restrict__ out, const float* __restrict__ k_scale, const float* __restrict__ v_scale, int blocks_per_row, int kv_heads, int group, int block_size, int window,
              float factor, float cap, float cap_rate) {
  DYNAMIC_SHARED(shared);
  const int2 item = work[blockIdx.x / kv_heads];
  if (item.x < 0) return;
  const int kv_head = blockIdx.x % kv_heads;
  const int4 chunk = chunks[item.x];
  const int past = chunk.z, total = chunk.y * group;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int table = chunk.w * blocks_per_row;

  // Positions that the block, and that this warp, needs: begin <= j < end, and those its rows stand at.
  const int base = item.y * ROWS, warp_base = base + warp * 16;
  const int begin = window ? max(0, past + base / group - window + 1) : 0;
  const int end = past + (min(base + ROWS, total) - 1) / group + 1;
  const bool active = warp_base < total;
  const int lowest = past + warp_base / group;
  const int highest = active ? past + (min(warp_base + 16, total) - 1) / group : -1;
  const int last = (end + KV_TILE - 1) / KV_TILE;

  const int position[2] = {past + (warp_base + g) / group, past + (warp_base + g + 8) / group};   // of rows g and g + 8
  int place[2];                        // theirs in q and out, or -1 past the chunk's end
  unsigned query[HEAD_DIM / 16][4];    // Q as operand A; absent rows are zero
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int p = warp_base + g + 8 * h, token = position[h] - past;
    place[h] = p < total ? (chunk.x + token) * (kv_heads * group) + kv_head * group + (p - token * group) : -1;
    const elem* from = q + static_cast<size_t>(max(place[h], 0)) * HEAD_DIM + (FP8_CACHE ? 4 : 2) * t;
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++)
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const unsigned pair = place[h] >= 0 ? *reinterpret_cast<const unsigned*>(from + k * 16 + (FP8_CACHE ? 2 : 8) * r) : 0u;
#if FP8_CACHE
        query[k][h + 2 * r] = pack_fp16(clamp_operand(unpack_elems(pair).x), clamp_operand(unpack_elems(pair).y));
#else
        query[k][h + 2 * r] = pair;
#endif
      }
  }

  float result[HEAD_DIM / 8][4];       // rows g and g + 8, dimensions 2t and 2t + 1 of each 8 (fp8: as load_values says)
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) result[n][c] = 0.f;
  float top[2] = {NEG_BIG, NEG_BIG}, sum[2] = {0.f, 0.f};   // of rows g and g + 8; sum: this lane's columns only

  // The page of the rows that this warp copies. Rows outside begin .. end are zeros, and their entry of the table is not even read.
  auto page_of = [&](int tile) {
    const int token = tile * KV_TILE + warp * COPY_ROWS;
    return token < end && token + COPY_ROWS > begin ? tables[table + token / block_size] : 0;
  };
  auto fetch = [&](int tile, int page, int stage) {
    if (tile < last) {
      const int copied = warp * COPY_ROWS, token0 = tile * KV_TILE + copied;
      const size_t from = ((static_cast<size_t>(page) * kv_heads + kv_head) * block_size + token0 % block_size) * ROW_BYTES;
      unsigned char* to = shared + stage * (2 * TILE_BYTES) + copied * PITCH;
#pragma unroll
      for (int turn = 0; turn < (COPY_ROWS * CHUNKS + 31) / 32; turn++) {
        const int i = turn * 32 + lane;
        if (COPY_ROWS * CHUNKS % 32 != 0 && i >= COPY_ROWS * CHUNKS) break;
        const int row = i / CHUNKS, piece = i % CHUNKS, token = token0 + row;
        const bool valid = token >= begin && token < end;   // what others left in the page may be NaN, and 0 * NaN is NaN
        cp_async16(to + row * PITCH + piece * 16, k_cache + from + i * 16, valid);
        cp_async16(to + TILE_BYTES + row * PITCH + piece * 16, v_cache + from + i * 16, valid);
      }
    }
    cp_async_commit();   // also when there is nothing: the count of groups tells the stages apart
  };
  const int first = begin / KV_TILE;
#pragma unroll
  for (int s = 0; s < STAGES - 1; s++) fetch(first + s, page_of(first + s), s);
  int next_page = page_of(first + STAGES - 1);

#if FP8_CACHE
  if (k_scale) (cap > 0.f ? cap_rate : factor) *= k_scale[kv_head];
#endif
  int stage = 0;
  for (int tile = first; tile < last; tile++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads();                                 // the others' copies have arrived too, and all are done with the stage before
    fetch(tile + STAGES - 1, next_page, stage == 0 ? STAGES - 1 : stage - 1);
    next_page = page_of(tile + STAGES);
    const unsigned char* keys = shared + stage * (2 * TILE_BYTES);
    const unsigned char* values = keys + TILE_BYTES;
    stage = stage + 1 == STAGES ? 0 : stage + 1;
    const int token0 = tile * KV_TILE;
    if (token0 > highest || (window && token0 + KV_TILE <= lowest - window + 1)) continue;   // nothing that this warp sees

    float s[KV_TILE / 8][4];                         // rows g and g + 8, tokens 2t and 2t + 1 of each 8
#pragma unroll
    for (int n = 0; n < KV_TILE / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) s[n][c] = 0.f;
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++)
#pragma unroll
      for (int n = 0; n < KV_TILE / 16; n++) {
        unsigned b[4];
        load_keys(b, keys, n, k, lane);
        multiply(s[2 * n], query[k], b[0], b[1]);
        multiply(s[2 * n + 1], query[k], b[2], b[3]);
      }
    if (cap > 0.f) cap_scores(s, cap, cap_rate);
    if (token0 + KV_TILE - 1 > lowest || (window && token0 <= highest - window)) mask_scores(s, position, token0, window, t);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float shrink = weigh_scores(s, h, factor, top[h], sum[h]);
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++) {
        result[n][2 * h] *= shrink;
        result[n][2 * h + 1] *= shrink;
      }
    }
#pragma unroll
    for (int k = 0; k < KV_TILE / 16; k++) {
      const unsigned a[4] = {pack_operand(s[2 * k][0], s[2 * k][1]), pack_operand(s[2 * k][2], s[2 * k][3]),
                             pack_operand(s[2 * k + 1][0], s[2 * k + 1][1]), pack_operand(s[2 * k + 1][2], s[2 * k + 1][3])};
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 16; n++) {
        unsigned b[4];
        load_values(b, values, k, n, lane);
        multiply(result[2 * n], a, b[0], b[1]);
        multiply(result[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  if (!active) return;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 1);
    sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 2);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    if (place[h] < 0) continue;
    float finish = 1.f / sum[h];
    if (sinks) {
      const float mine = top[h] * factor, other = to_float(sinks[place[h] % (kv_heads * group)]) * LOG2E, highest_score = fmaxf(mine, other);
      finish = ex2(mine - highest_score) / fmaf(sum[h], ex2(mine - highest_score), ex2(other - highest_score));
    }
#if FP8_CACHE
    if (v_scale) finish *= v_scale[kv_head];
#endif
    elem* to = out + static_cast<size_t>(place[h]) * HEAD_DIM + (FP8_CACHE ? 4 : 2) * t;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 16; n++) {
      const float low[2] = {result[2 * n][2 * h] * finish, result[2 * n][2 * h + 1] * finish};
      const float high[2] = {result[2 * n + 1][2 * h] * finish, result[2 * n + 1][2 * h + 1] * finish};
#if FP8_CACHE
      *reinterpret_cast<uint2*>(to + n * 16) = make_uint2(pack_elems(low[0], high[0]), pack_elems(low[1], high[1]));
#else
      *reinterpret_cast<unsigned*>(to + n * 16) = pack_elems(low[0], low[1]);
      *reinterpret_cast<unsigned*>(to + n * 16 + 8) = pack_elems(high[0], high[1]);
#endif
    }
  }
}
