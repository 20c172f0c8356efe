// Multi-head latent attention for decode (DeepSeek V2 and V3, arXiv:2405.04434) with absorbed weights: one new token per request, whose query
// heads all read the one cached row per token: 512 numbers of latent, which are also its value, and 64 that carry the position.
//
// The ladder
//   1. reference.mla_attention: plain torch.
//   2. naive: paged_decode over one KV head of 576: K and V would be fetched apart, although V is the first 512 numbers of K, and once
//      for each 8 query heads, of which there are 16 to 128.
//   3. this. What each step is for (the first two are arithmetic, the rest are expectations; none measured on a GPU yet):
//      - a row is fetched once and serves as key and as value: half the bytes;
//      - HEAD_TILE query heads share it: with 128 heads a token's 1,152 bytes feed 278,000 operations, about what a Hopper GPU does per
//        byte, so both limits matter. 64 heads per block: its two blocks per token meet in the L2 cache;
//      - a group of 16 heads belongs to SLICES warps. Each scores its own share of a tile's tokens over all 576 numbers and then weighs all
//        tokens of the tile over its own share of the 512: no product is computed twice, the accumulators of 64 x 512 results fit into
//        registers, and only probabilities (bf16) and row maxima pass through shared memory;
//      - queries stay in shared memory: as registers, 576 of them would take 144 per thread;
//      - tiles come by cp.async a tile ahead; rows of shared memory have an odd pitch in 16-byte chunks (see paged_decode.cu).
//      Expected on an H200: 70 % of copy bandwidth at 16 heads, 40 % of the bf16 rate at 128 (wgmma would be the next step there).
//
// Splits, their merge and the fixed order of everything are paged_decode's: with a fixed split size the bits do not depend on the batch.
//
// Macros: HEAD_DIM (of the latent: 512), HEAD_TILE (query heads of one block: 16, 32 or 64), WARPS.
#define FP8_CACHE 0
#include "merge.cuh"
#include "operands.cuh"

#define LATENT HEAD_DIM
#define ROPE 64
#define WIDTH (LATENT + ROPE)
#define TILE 32                            // tokens of one tile
#define CHUNKS (WIDTH * 2 / 16)
#define PITCH ((CHUNKS | 1) * 16)          // bytes between rows in shared memory
#define P_PITCH ((TILE * 2 / 16 | 1) * 16) // of the probabilities, [HEAD_TILE] rows of TILE
#define SLICES (WARPS * 16 / HEAD_TILE)    // warps of one group of 16 heads
#define OWN (TILE / SLICES)                // tokens that a warp scores
#define DIMS (LATENT / SLICES)             // dimensions that it weighs
#define COPY_ROWS (TILE / WARPS)           // rows that it copies: they lie in one page
static_assert(OWN % 8 == 0 && DIMS % 16 == 0 && 16 % COPY_ROWS == 0, "a warp's shares are whole tiles of the tensor core");

// work and the partial results are those of paged_decode. q_latent, q_rope: head h of query i is at [i * query_stride + h * head_stride] of
// each; cache [blocks][block_size][WIDTH]; partial_out float [items][heads][LATENT].
// Grid (items, ceil(heads / HEAD_TILE)), WARPS * 32 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 1)
mla_decode(const elem* __restrict__ q_latent, const elem* __restrict__ q_rope, const elem* __restrict__ cache, const int* __restrict__ tables,
           const int4* __restrict__ work, float* __restrict__ partial_out, float* __restrict__ partial_lse, int latent_query_stride,
           int latent_head_stride, int rope_query_stride, int rope_head_stride, int blocks_per_row, int heads, int block_size, float scale) {
  DYNAMIC_SHARED(shared);
  const int4 item = work[blockIdx.x];
  const int begin = item.y, end = item.z;
  if (begin >= end) return;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int group = warp / SLICES, slice = warp % SLICES;
  const int first_head = blockIdx.y * HEAD_TILE, heads_here = min(HEAD_TILE, heads - first_head);
  const int* table = tables + static_cast<size_t>(item.w) * blocks_per_row;
  const int last = (end + TILE - 1) / TILE;
  unsigned char* queries = shared;                                                  // [HEAD_TILE][PITCH]
  unsigned char* ring = queries + HEAD_TILE * PITCH;                                // [2][TILE][PITCH]
  unsigned char* probabilities = ring + 2 * TILE * PITCH;                           // [HEAD_TILE][P_PITCH]
  float* tops = reinterpret_cast<float*>(probabilities + HEAD_TILE * P_PITCH);      // [SLICES][HEAD_TILE]; in the end the sums

  for (int i = threadIdx.x; i < HEAD_TILE * CHUNKS; i += WARPS * 32) {
    const int head = i / CHUNKS, d = i % CHUNKS * 8;
    const elem* from = d < LATENT ? q_latent + static_cast<size_t>(item.x) * latent_query_stride + (first_head + head) * latent_head_stride + d
                                  : q_rope + static_cast<size_t>(item.x) * rope_query_stride + (first_head + head) * rope_head_stride + (d - LATENT);
    *reinterpret_cast<uint4*>(queries + head * PITCH + d * 2) = head < heads_here ? load16(from) : make_uint4(0, 0, 0, 0);
  }

  float out[DIMS / 8][4];                                   // heads g and g + 8 of the group, dimensions 2t and 2t + 1 of each 8
#pragma unroll
  for (int n = 0; n < DIMS / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) out[n][c] = 0.f;
  float top[2] = {NEG_BIG, NEG_BIG}, sum[2] = {0.f, 0.f};   // of heads g and g + 8; sum: this lane's tokens only

  auto page_of = [&](int tile) {
    const int token = tile * TILE + warp * COPY_ROWS;
    return token < end && token + COPY_ROWS > begin ? table[token / block_size] : 0;
  };
  auto fetch = [&](int tile, int page, int stage) {
    if (tile < last) {
      const int token0 = tile * TILE + warp * COPY_ROWS;
      const elem* from = cache + (static_cast<size_t>(page) * block_size + token0 % block_size) * WIDTH;
      unsigned char* to = ring + (stage * TILE + warp * COPY_ROWS) * PITCH;
#pragma unroll
      for (int turn = 0; turn < (COPY_ROWS * CHUNKS + 31) / 32; turn++) {
        const int i = turn * 32 + lane, row = i / CHUNKS;
        if (COPY_ROWS * CHUNKS % 32 != 0 && i >= COPY_ROWS * CHUNKS) break;
        const bool valid = token0 + row >= begin && token0 + row < end;   // what others left in the page may be NaN, and 0 * NaN is NaN
        cp_async16(to + row * PITCH + i % CHUNKS * 16, from + i * 8, valid);
      }
    }
    cp_async_commit();
  };
  const int first = begin / TILE;
  fetch(first, page_of(first), 0);
  int next_page = page_of(first + 1);

  const float score_scale = scale * LOG2E;
  for (int tile = first; tile < last; tile++) {
    const int stage = (tile - first) & 1;
    cp_async_wait<0>();
    __syncthreads();                                 // the tile is there, and all are done with the one before
    fetch(tile + 1, next_page, stage ^ 1);
    next_page = page_of(tile + 2);
    const unsigned char* rows = ring + stage * TILE * PITCH;

    float s[OWN / 8][4];                             // heads g and g + 8, tokens 2t and 2t + 1 of each 8 of its own
#pragma unroll
    for (int n = 0; n < OWN / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) s[n][c] = 0.f;
#pragma unroll 2   // all 18 of them would spill
    for (int k = 0; k < WIDTH / 32; k++) {
      unsigned a[2][4];
#pragma unroll
      for (int half = 0; half < 2; half++) ldmatrix_x4(a[half], queries + (group * 16 + (lane & 15)) * PITCH + (4 * k + 2 * half + (lane >> 4)) * 16);
#pragma unroll
      for (int n = 0; n < OWN / 8; n++) {
        unsigned b[4];                               // 8 tokens, 32 numbers of each
        ldmatrix_x4(b, rows + (slice * OWN + n * 8 + (lane & 7)) * PITCH + (4 * k + (lane >> 3)) * 16);
        multiply(s[n], a[0], b[0], b[1]);
        multiply(s[n], a[1], b[2], b[3]);
      }
    }
    float highest[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      highest[h] = NEG_BIG;
#pragma unroll
      for (int n = 0; n < OWN / 8; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
          const int token = tile * TILE + slice * OWN + n * 8 + 2 * t + c;
          float& score = s[n][2 * h + c];
          score = token < begin || token >= end ? NEG_BIG : score * score_scale;
          highest[h] = fmaxf(highest[h], score);
        }
      highest[h] = fmaxf(highest[h], __shfl_xor_sync(FULL_WARP, highest[h], 1));
      highest[h] = fmaxf(highest[h], __shfl_xor_sync(FULL_WARP, highest[h], 2));
      if (t == 0) tops[slice * HEAD_TILE + group * 16 + g + 8 * h] = highest[h];
    }
    __syncthreads();                                 // the maxima of the group's other warps are there
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int head = group * 16 + g + 8 * h;
      float higher = top[h];
#pragma unroll
      for (int w = 0; w < SLICES; w++) higher = fmaxf(higher, tops[w * HEAD_TILE + head]);
      const float shrink = ex2(top[h] - higher);
      top[h] = higher;
      sum[h] *= shrink;
#pragma unroll
      for (int n = 0; n < OWN / 8; n++) {
        const float p0 = ex2(s[n][2 * h] - higher), p1 = ex2(s[n][2 * h + 1] - higher);
        sum[h] += p0 + p1;
        *reinterpret_cast<unsigned*>(probabilities + head * P_PITCH + (slice * OWN + n * 8 + 2 * t) * 2) = pack_operand(p0, p1);
      }
#pragma unroll
      for (int n = 0; n < DIMS / 8; n++) {
        out[n][2 * h] *= shrink;
        out[n][2 * h + 1] *= shrink;
      }
    }
    __syncthreads();                                 // so are their probabilities
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
      unsigned a[4];
      ldmatrix_x4(a, probabilities + (group * 16 + (lane & 15)) * P_PITCH + (2 * k + (lane >> 4)) * 16);
#pragma unroll
      for (int n = 0; n < DIMS / 16; n++) {
        unsigned b[4];
        ldmatrix_x4_trans(b, rows + (k * 16 + (lane & 15)) * PITCH + (slice * (DIMS / 8) + 2 * n + (lane >> 4)) * 16);
        multiply(out[2 * n], a, b[0], b[1]);
        multiply(out[2 * n + 1], a, b[2], b[3]);
      }
    }
  }
  cp_async_wait<0>();
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 1);
    sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], 2);
    if (t == 0) tops[slice * HEAD_TILE + group * 16 + g + 8 * h] = sum[h];   // all have read the last tile's maxima
  }
  __syncthreads();                                   // the sums of the group's other warps are there
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int head = group * 16 + g + 8 * h;
    if (head >= heads_here) continue;
    float total = 0.f;
#pragma unroll
    for (int w = 0; w < SLICES; w++) total += tops[w * HEAD_TILE + head];
    const float finish = 1.f / total;
    const size_t place = static_cast<size_t>(blockIdx.x) * heads + first_head + head;
    float* to = partial_out + place * LATENT + slice * DIMS + 2 * t;
#pragma unroll
    for (int n = 0; n < DIMS / 8; n++) *reinterpret_cast<float2*>(to + n * 8) = make_float2(out[n][2 * h] * finish, out[n][2 * h + 1] * finish);
    if (slice == 0 && t == 0) partial_lse[place] = top[h] + log2f(total);
  }
}

extern "C" __global__ void __launch_bounds__(128)
merge_mla(const float* __restrict__ partial_out, const float* __restrict__ partial_lse, const int4* __restrict__ merges, elem* __restrict__ out,
          int heads, int total) {
  merge_splits_of<LATENT>(partial_out, partial_lse, merges, nullptr, out, heads, total);
}
