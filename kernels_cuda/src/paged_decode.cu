// Paged attention for decode: one new token per request over its cached keys and values, and the merge of a request's splits.
//
// The ladder
//   1. reference.decode_attention: plain torch, gathers the pages into a contiguous copy.
//   2. naive: one block per (request, head), scores in shared memory, scalar dot products: reads K and V once per query head.
//   3. this. What each step is for (the first two gain a factor on paper, the rest are expectations; none measured on a GPU yet):
//      - the query heads of one KV head share a tensor-core tile, so K and V are read once per KV head: group-size times fewer bytes;
//      - long contexts are split over blocks by a work list (flash decoding), so a few requests fill the machine; a fixed order of merging;
//      - scores transposed: S^T = K Q^T and O^T = V^T P^T, tokens and dimensions in the 16 rows and heads in the 8 columns of
//        m16n8k16: half the mma and half the accumulators of a tile with 16 head rows, most of which would be padding;
//      - each warp takes every WARPS-th tile of 16 tokens with its own ring of cp.async stages, and warps meet once at the end: no block
//        barrier in the loop;
//      - rows of shared memory have an odd pitch in 16-byte chunks: ldmatrix and the byte reads of fp8 are free of bank conflicts for every
//        head size, which an XOR swizzle is not for 80 and 96;
//      - the page number of a tile is fetched one tile ahead, so that a copy is not issued a memory latency late.
//      Expected: 85 % of copy bandwidth from 64k tokens on.
//
// Splits end at multiples of the plan's split size, counted from the request's first token; which warp has which tile and the order of
// the merges depend on the request's own length alone. With a fixed split size the bits do not depend on the batch.
//
// Method: online softmax (arXiv:1805.02867) as in FlashAttention (arXiv:2205.14135); splits as in Flash-Decoding; pages: arXiv:2309.06180.
//
// fp8 cache: e4m3 goes to fp16 exactly, so q is taken as fp16 and the product is fp16's, whatever elem is. Dimensions are permuted within 16
// (for K) so that a lane's four bytes stand together, and dimension pairs are told apart by a byte shuffle after ldmatrix (for V).
//
// Macros: HEAD_DIM (a multiple of 16 up to 256), FP8_CACHE, WARPS, STAGES.
#include "merge.cuh"
#include "operands.cuh"

#define TILE 16                      // tokens of one tile; the cache's block_size is a multiple of it
#define HEADS 8                      // query heads of one block; larger groups take several blocks
#define KV_BYTES (FP8_CACHE ? 1 : 2)
#define ROW_BYTES (HEAD_DIM * KV_BYTES)
#define CHUNKS (ROW_BYTES / 16)
#define PITCH ((CHUNKS | 1) * 16)    // bytes between rows in shared memory
#define TILE_BYTES (TILE * PITCH)
#define OUT_PITCH (HEAD_DIM + 4)     // floats between heads of a warp's result

// K of 16 tokens x 16 dimensions as operand A. fp8: column 2t+j of the product stands for dimension 4t+j, column 2t+8+j for 4t+2+j.
__device__ __forceinline__ void load_keys(unsigned (&a)[4], const unsigned char* tile, int k, int lane) {
#if FP8_CACHE
  const unsigned char* at = tile + (lane >> 2) * PITCH + k * 16 + (lane & 3) * 4;
  const unsigned low = *reinterpret_cast<const unsigned*>(at), high = *reinterpret_cast<const unsigned*>(at + 8 * PITCH);
  a[0] = e4m3x2_to_fp16x2(low & 0xffffu);
  a[1] = e4m3x2_to_fp16x2(high & 0xffffu);
  a[2] = e4m3x2_to_fp16x2(low >> 16);
  a[3] = e4m3x2_to_fp16x2(high >> 16);
#else
  ldmatrix_x4(a, tile + (lane & 15) * PITCH + (2 * k + (lane >> 4)) * 16);
#endif
}
// V^T of 16 dimensions x 16 tokens as operand A. fp8: row g stands for dimension 2g, row g+8 for 2g+1.
__device__ __forceinline__ void load_values(unsigned (&a)[4], const unsigned char* tile, int n, int lane) {
#if FP8_CACHE
  unsigned r[2];
  ldmatrix_x2_trans(r, tile + (lane & 15) * PITCH + n * 16);
  a[0] = e4m3x2_to_fp16x2(__byte_perm(r[0], 0, 0x4420));
  a[1] = e4m3x2_to_fp16x2(__byte_perm(r[0], 0, 0x4431));
  a[2] = e4m3x2_to_fp16x2(__byte_perm(r[1], 0, 0x4420));
  a[3] = e4m3x2_to_fp16x2(__byte_perm(r[1], 0, 0x4431));
#else
  ldmatrix_x4_trans(a, tile + ((lane & 7) + 8 * (lane >> 4)) * PITCH + (2 * n + (lane >> 3 & 1)) * 16);
#endif
}
__device__ __forceinline__ int dimension_of(int n, int g, int upper) { return n * 16 + (FP8_CACHE ? 2 * g + upper : g + 8 * upper); }

// work[item] = (query, begin, end, row): attend from q[query] over tokens begin <= j < end of tables[row]; an item with begin >= end is padding.
// q [queries][kv_heads * group][HEAD_DIM]; caches [blocks][kv_heads][block_size][HEAD_DIM]; partial_out float [items][heads][HEAD_DIM],
// partial_lse float [items][heads]: result and log2 of the sum of 2^score. k_scale, v_scale float [kv_heads] or null. soft_cap 0: none.
// Grid (items, kv_heads * ceil(group / 8)), WARPS * 32 threads.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
paged_decode(const elem* __restrict__ q, const unsigned char* __restrict__ k_cache, const unsigned char* __restrict__ v_cache,
             const int* __restrict__ tables, const int4* __restrict__ work, float* __restrict__ partial_out, float* __restrict__ partial_lse,
             const float* __restrict__ k_scale, const float* __restrict__ v_scale, int blocks_per_row, int kv_heads, int group, int block_size,
             float scale, float soft_cap) {
  DYNAMIC_SHARED(shared);
  const int4 item = work[blockIdx.x];
  const int begin = item.y, end = item.z;
  if (begin >= end) return;
  const int head_tiles = (group + HEADS - 1) / HEADS;
  const int kv_head = blockIdx.y / head_tiles, first_head = blockIdx.y % head_tiles * HEADS;
  const int heads_here = min(HEADS, group - first_head);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
  const int heads = kv_heads * group, head_base = kv_head * group + first_head;
  const int* table = tables + static_cast<size_t>(item.w) * blocks_per_row;
  const int last = (end + TILE - 1) / TILE;
  unsigned char* ring = shared + warp * (STAGES * 2 * TILE_BYTES);

  // Q^T as operand B: lane 4g+t holds of head g dimensions 2t, 2t+1, 2t+8, 2t+9 of each 16 (fp8: 4t .. 4t+3); absent heads are zero.
  unsigned query[HEAD_DIM / 16][2];
  const elem* q_row = q + (static_cast<size_t>(item.x) * heads + head_base + g) * HEAD_DIM;
#pragma unroll
  for (int k = 0; k < HEAD_DIM / 16; k++)
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const int d = k * 16 + (FP8_CACHE ? 4 * t + 2 * r : 2 * t + 8 * r);
      query[k][r] = g < heads_here ? *reinterpret_cast<const unsigned*>(q_row + d) : 0u;
#if FP8_CACHE
      const float2 pair = unpack_elems(query[k][r]);
      query[k][r] = pack_fp16(clamp_operand(pair.x), clamp_operand(pair.y));
#endif
    }

  float out[HEAD_DIM / 16][4];   // O^T: dimensions g and g+8 (as dimension_of says), heads 2t and 2t+1
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 16; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) out[n][c] = 0.f;
  float top[2] = {NEG_BIG, NEG_BIG}, sum[2] = {0.f, 0.f};   // of heads 2t and 2t+1; sum: this lane's tokens only

  auto page_of = [&](int tile) { return tile < last ? table[tile * TILE / block_size] : 0; };
  auto fetch = [&](int tile, int page, int stage) {
    if (tile < last) {
      const size_t base = ((static_cast<size_t>(page) * kv_heads + kv_head) * block_size + tile * TILE % block_size) * ROW_BYTES;
      unsigned char* to = ring + stage * (2 * TILE_BYTES);
#pragma unroll
      for (int turn = 0; turn < (TILE * CHUNKS + 31) / 32; turn++) {
        const int i = turn * 32 + lane;
        if (TILE * CHUNKS % 32 != 0 && i >= TILE * CHUNKS) break;
        const int row = i / CHUNKS, chunk = i % CHUNKS, token = tile * TILE + row;
        const bool valid = token >= begin && token < end;   // what others left in the page may be NaN, and 0 * NaN is NaN
        cp_async16(to + row * PITCH + chunk * 16, k_cache + base + row * ROW_BYTES + chunk * 16, valid);
        cp_async16(to + TILE_BYTES + row * PITCH + chunk * 16, v_cache + base + row * ROW_BYTES + chunk * 16, valid);
      }
    }
    cp_async_commit();   // also when there is nothing: the count of groups tells the stages apart
  };
  const int first = begin / TILE + warp;
#pragma unroll
  for (int s = 0; s < STAGES; s++) fetch(first + s * WARPS, page_of(first + s * WARPS), s);
  int next_page = page_of(first + STAGES * WARPS);

  const float score_scale = scale * (k_scale ? k_scale[kv_head] : 1.f) * LOG2E;
  const float cap = soft_cap * LOG2E, cap_rate = soft_cap > 0.f ? 2.f / soft_cap : 0.f;
  int stage = 0;
  for (int tile = first; tile < last; tile += WARPS) {
    cp_async_wait<STAGES - 1>();
    __syncwarp();                                  // the other lanes' copies have arrived too
    const unsigned char* keys = ring + stage * (2 * TILE_BYTES);
    const unsigned char* values = keys + TILE_BYTES;
    float s[4] = {0.f, 0.f, 0.f, 0.f};             // tokens g and g+8, heads 2t and 2t+1
#pragma unroll
    for (int k = 0; k < HEAD_DIM / 16; k++) {
      unsigned a[4];
      load_keys(a, keys, k, lane);
      multiply(s, a, query[k][0], query[k][1]);
    }
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int token = tile * TILE + g + 8 * (c >> 1);
      s[c] *= score_scale;
      if (soft_cap > 0.f) s[c] = cap - 2.f * cap * __fdividef(1.f, 1.f + ex2(fminf(s[c] * cap_rate, 126.f)));   // cap * tanh(s / cap)
      if (token < begin || token >= end) s[c] = NEG_BIG;
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float highest = fmaxf(top[h], fmaxf(s[h], s[2 + h]));
#pragma unroll
      for (int m = 4; m < 32; m <<= 1) highest = fmaxf(highest, __shfl_xor_sync(FULL_WARP, highest, m));
      const float shrink = ex2(top[h] - highest);
      top[h] = highest;
      s[h] = ex2(s[h] - highest);
      s[2 + h] = ex2(s[2 + h] - highest);
      sum[h] = sum[h] * shrink + s[h] + s[2 + h];
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 16; n++) {
        out[n][h] *= shrink;
        out[n][2 + h] *= shrink;
      }
    }
    const unsigned p0 = movmatrix_trans(pack_operand(s[0], s[1])), p1 = movmatrix_trans(pack_operand(s[2], s[3]));
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 16; n++) {
      unsigned a[4];
      load_values(a, values, n, lane);
      multiply(out[n], a, p0, p1);
    }
    __syncwarp();                                  // every lane has read the stage before it is filled again
    fetch(tile + STAGES * WARPS, next_page, stage);
    next_page = page_of(tile + (STAGES + 1) * WARPS);
    stage = stage + 1 == STAGES ? 0 : stage + 1;
  }
  cp_async_wait<0>();
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int m = 4; m < 32; m <<= 1) sum[h] += __shfl_xor_sync(FULL_WARP, sum[h], m);

  __syncthreads();                                 // the rings are done with; the same memory now holds the warps' results
  float* results = reinterpret_cast<float*>(shared);          // [WARPS][HEADS][OUT_PITCH]
  float* tops = results + WARPS * HEADS * OUT_PITCH;          // [WARPS][HEADS]
  float* sums = tops + WARPS * HEADS;                         // [WARPS][HEADS]
#pragma unroll
  for (int n = 0; n < HEAD_DIM / 16; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) results[(warp * HEADS + 2 * t + (c & 1)) * OUT_PITCH + dimension_of(n, g, c >> 1)] = out[n][c];
  if (g == 0) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      tops[warp * HEADS + 2 * t + h] = top[h];
      sums[warp * HEADS + 2 * t + h] = sum[h];
    }
  }
  __syncthreads();
  for (int head = warp; head < heads_here; head += WARPS) {
    float highest = NEG_BIG, total = 0.f, factor[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++) highest = fmaxf(highest, tops[w * HEADS + head]);
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      factor[w] = ex2(tops[w * HEADS + head] - highest);
      total += factor[w] * sums[w * HEADS + head];
    }
    const float finish = (v_scale ? v_scale[kv_head] : 1.f) / total;
    const size_t place = static_cast<size_t>(blockIdx.x) * heads + head_base + head;
    for (int d = lane * 4; d < HEAD_DIM; d += 128) {
      float4 sum4 = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        const float4 v = *reinterpret_cast<const float4*>(results + (w * HEADS + head) * OUT_PITCH + d);
        sum4.x += factor[w] * v.x;
        sum4.y += factor[w] * v.y;
        sum4.z += factor[w] * v.z;
        sum4.w += factor[w] * v.w;
      }
      *reinterpret_cast<float4*>(partial_out + place * HEAD_DIM + d) =
          make_float4(sum4.x * finish, sum4.y * finish, sum4.z * finish, sum4.w * finish);
    }
    if (lane == 0) partial_lse[place] = highest + log2f(total);
  }
}

extern "C" __global__ void __launch_bounds__(128)
merge_splits(const float* __restrict__ partial_out, const float* __restrict__ partial_lse, const int4* __restrict__ merges,
             const elem* __restrict__ sinks, elem* __restrict__ out, int heads, int total) {
  merge_splits_of<HEAD_DIM>(partial_out, partial_lse, merges, sinks, out, heads, total);
}
