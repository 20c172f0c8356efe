// After the q/k/v matrix product, in one pass: q and k normed per head (if the model does), turned by their rotary positions, q written
// for attention, k and v written to the paged cache, as elem or as e4m3.
//
// The ladder
//   1. reference.norm_rotate: plain torch.
//   2. naive: four kernels (norm q, norm k, rotate, write), which read and write q and k three times.
//   3. this: each element is read once and written once with 16-byte accesses. A head is held by 8, 16 or 32 neighbouring lanes, eight
//      elements each, so that small heads fill a warp too. Rotation partners meet in shared memory, which allows any even rotary
//      dimension; shuffles would need half of it to be a multiple of 8. Expected (not measured): 85 % of copy bandwidth.
// A head of a token is computed by its own lanes in a fixed order: its bits do not depend on the batch.
//
// Macros: HEAD_DIM (a multiple of 8 up to 256), FP8_CACHE.
#include "common.cuh"

#define LANES (HEAD_DIM <= 64 ? 8 : HEAD_DIM <= 128 ? 16 : 32)   // that hold one head
#define HEADS_PER_WARP (32 / LANES)
#define WARPS 4

// qkv [tokens][heads + 2 * kv_heads][HEAD_DIM], rows `stride` elements apart; q_out [tokens][heads][HEAD_DIM] (may be qkv itself).
// Caches [blocks][kv_heads][block_size][HEAD_DIM]; slots[token] = block * block_size + place, or -1: the token is padding and writes nothing
// to the cache. cos_sin float [positions][2][rotary / 2]. Weights null: no norm. Scales float [kv_heads], null: 1.
// Grid (tokens, ceil(all heads / (WARPS * HEADS_PER_WARP))).
extern "C" __global__ void __launch_bounds__(WARPS * 32)
norm_rotate_write(const elem* qkv, elem* q_out, unsigned char* __restrict__ k_cache, unsigned char* __restrict__ v_cache,
                  const long long* __restrict__ slots, const int* __restrict__ positions, const float* __restrict__ cos_sin,
                  const elem* __restrict__ q_weight, const elem* __restrict__ k_weight, const float* __restrict__ k_scale,
                  const float* __restrict__ v_scale, int heads, int kv_heads, int stride, int block_size, int rotary, int interleaved,
                  float weight_offset, float eps) {
  __shared__ float staged[WARPS][HEADS_PER_WARP][LANES * 8];
  const int token = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int part = lane / LANES, at = (lane % LANES) * 8;
  const int head = (blockIdx.y * WARPS + warp) * HEADS_PER_WARP + part;
  const int all_heads = heads + 2 * kv_heads;
  const bool here = head < all_heads && at < HEAD_DIM;
  const bool is_q = head < heads, is_v = head >= heads + kv_heads;
  float x[8] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
  if (here) unpack8(load16(qkv + static_cast<size_t>(token) * stride + static_cast<size_t>(head) * HEAD_DIM + at), x);

  const elem* weight = is_q ? q_weight : k_weight;
  float squares = 0.f;
#pragma unroll
  for (int i = 0; i < 8; i++) squares += x[i] * x[i];
  squares = warp_sum<LANES>(squares);   // by all lanes, also those of v: a shuffle must not diverge
  if (weight && !is_v && here) {
    float w[8];
    unpack8(load16(weight + at), w);
    const float factor = rsqrtf(squares / HEAD_DIM + eps);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] *= factor * (w[i] + weight_offset);
  }

  float* row = staged[warp][part];
#pragma unroll
  for (int i = 0; i < 8; i++) row[at + i] = x[i];
  __syncwarp();
  if (!here) return;
  if (!is_v && at < rotary) {
    const int half = rotary / 2;
    const float* cosines = cos_sin + static_cast<size_t>(positions[token]) * rotary;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int d = at + i;
      if (d < rotary) {
        const int angle = interleaved ? d >> 1 : d < half ? d : d - half;
        const bool first = interleaved ? !(d & 1) : d < half;
        const float partner = row[interleaved ? d ^ 1 : first ? d + half : d - half];
        x[i] = x[i] * cosines[angle] + (first ? -partner : partner) * cosines[half + angle];
      }
    }
  }
  if (is_q) {
    store16(q_out + (static_cast<size_t>(token) * (q_out == qkv ? stride : heads * HEAD_DIM)) + static_cast<size_t>(head) * HEAD_DIM + at, pack8(x));
    return;
  }
  const long long slot = slots[token];
  if (slot < 0) return;
  const int kv_head = is_v ? head - heads - kv_heads : head - heads;
  const size_t place = ((static_cast<size_t>(slot / block_size) * kv_heads + kv_head) * block_size + slot % block_size) * HEAD_DIM + at;
  unsigned char* cache = is_v ? v_cache : k_cache;
#if FP8_CACHE
  const float* scale = is_v ? v_scale : k_scale;
  const float inverse = scale ? 1.f / scale[kv_head] : 1.f;
  uint2 packed;
  packed.x = floats_to_e4m3x2(x[0] * inverse, x[1] * inverse) | floats_to_e4m3x2(x[2] * inverse, x[3] * inverse) << 16;
  packed.y = floats_to_e4m3x2(x[4] * inverse, x[5] * inverse) | floats_to_e4m3x2(x[6] * inverse, x[7] * inverse) << 16;
  *reinterpret_cast<uint2*>(cache + place) = packed;
#else
  store16(reinterpret_cast<elem*>(cache) + place, pack8(x));
#endif
}
