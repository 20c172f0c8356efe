// The next token of each entry of a batch: what a request asks of the logits, then greedy or a draw by inverse CDF.
//
// The ladder
//   1. gpu_workers.sampler: torch, a sort or top-k of some logits, a dozen passes and launches; on a GPU it waits for the host.
//   2. naive: one thread block per entry that sorts the vocabulary.
//   3. this: two launches whatever the entries ask for, no sort, no word from the host.
//      edit_logits reads logits once, in as many parts as fill the machine, and writes the changed row only where something is drawn from
//      it, so that greedy entries cost one read. draw_tokens reads the changed row (from the L2 cache) once for a plain draw, 4 times for
//      top-p or top-k, 7 for both. Expected (not measured): 60 % of the bandwidth for greedy, under 60 microseconds for 64 entries of 128k.
//   4. not yet: 16-byte loads (a row of an odd vocabulary starts anywhere); draw_tokens split over several blocks per entry at small
//      batches: all that blocks would exchange are integer sums and minima (histograms, segments), so the bits will stay as they are.
//
// Top-k and top-p by radix select (as in Alabi et al. 2012, "Fast k-selection algorithms for graphics processing units") over the
// order-preserving bits of the logits, by counts for k and by weights for p: exact, never a rejection loop whose length depends on the
// draw. FlashInfer's dual-pivot rejection sampling (arXiv:2501.01005 and its documentation) reads about as often, but uses another
// random number per round, so its token would not be the CPU's.
//
// The draw is an inverse CDF in order of ids with one uniform of Philox-4x32-10 by (seed, position), and not Gumbel's trick, for the same
// reason: with the CPU sampler's filters, weights and target, the only difference between devices is the last bit of expf, which
// moves a token's share by some 1e-7: a request that goes on elsewhere goes on with the same tokens but for that.
//
// Order of edits and meaning of ties as in gpu_workers.sampler. No id, row, slot or span is used before it is checked.
#include "select.cuh"

#define EDIT_THREADS 256
#define TILE 2048               // logits of edit_logits at once
#define EACH (TILE / EDIT_THREADS)
#define GREEDY_BELOW 1e-5f      // ipc.sampling_params.GREEDY_BELOW, which a test holds
#define PARTIAL 4               // of a part: best raw logit, best kept one (by mask or allowed ids), best edited one; lowest id of the mask

// Requests' wishes, by row; spans are (start, count) into lists whose ids are ascending and different.
struct Span {
  int start, count;
};
__device__ __forceinline__ Span checked(const int2* spans, int row, int room) {
  if (!spans) return {0, 0};
  const int2 span = spans[row];
  return span.x < 0 || span.y <= 0 || span.y > room || span.x > room - span.y ? Span{0, 0} : Span{span.x, span.y};
}
__device__ __forceinline__ int lower_bound(const int* ids, Span span, int id) {
  int low = span.start, high = span.start + span.count;
  while (low < high) {
    const int middle = low + ((high - low) >> 1);
    if (ids[middle] < id) low = middle + 1;
    else high = middle;
  }
  return low;
}
__device__ __forceinline__ bool has_bit(const int* words, int id) { return !words || (words[id >> 5] >> (id & 31) & 1); }

// edited[e][v] for entries whose row draws at random, and partial[e][part][PARTIAL] for all. Grid (entries, parts), EDIT_THREADS threads;
// a part is every gridDim.y-th tile, and no result depends on how many there are. An entry whose row is not a row counts as NaN.
// logits [entries][stride]; masks int [num_masks][words], mask_of[e] and allowed_of[row] name one of them or are -1; tally [slots][vocab],
// slot_of[row] -1 none, a tally is 2 * times in the output + (1 if in the prompt). Null: nobody has it.
extern "C" __global__ void __launch_bounds__(EDIT_THREADS, 5)
edit_logits(const logit* __restrict__ logits, long long stride, int vocab, const int* __restrict__ rows,
            const long long* __restrict__ positions, int num_rows, const float* __restrict__ temperature, const int* __restrict__ masks,
            int num_masks, const int* __restrict__ mask_of, const int* __restrict__ allowed_of, const int* __restrict__ edit_ids,
            const float* __restrict__ edit_values, const int2* __restrict__ edit_spans, int edit_room, const int* __restrict__ stop_ids,
            const int2* __restrict__ stop_spans, int stop_room, const long long* __restrict__ min_position, const int* __restrict__ tally,
            int num_slots, const int* __restrict__ slot_of, const float* __restrict__ repetition, const float* __restrict__ presence,
            const float* __restrict__ frequency, float* __restrict__ edited, u64* __restrict__ partial) {
  __shared__ float tile[TILE];
  __shared__ u64 scratch[32];
  const int entry = blockIdx.x, row = rows[entry];
  u64 best_raw = NO_BEST, best_kept = NO_BEST, best_edited = NO_BEST, lowest = NO_BEST;
  u64* result = partial + (static_cast<size_t>(entry) * gridDim.y + blockIdx.y) * PARTIAL;
  if (row < 0 || row >= num_rows) {
    if (threadIdx.x == 0) result[0] = result[1] = result[2] = result[3] = 0ull;   // rank 0 is NaN's
    return;
  }
  const int words = (vocab + 31) >> 5, mask_at = mask_of ? mask_of[entry] : -1, allowed_at = allowed_of ? allowed_of[row] : -1;
  const int* mask = mask_at >= 0 && mask_at < num_masks ? masks + static_cast<size_t>(mask_at) * words : nullptr;
  const int* allowed = allowed_at >= 0 && allowed_at < num_masks ? masks + static_cast<size_t>(allowed_at) * words : nullptr;
  const Span edits = checked(edit_spans, row, edit_room);
  const Span stops = stop_spans && positions[entry] < min_position[row] ? checked(stop_spans, row, stop_room) : Span{0, 0};
  const int slot = slot_of ? slot_of[row] : -1;
  const int* counts = slot >= 0 && slot < num_slots ? tally + static_cast<size_t>(slot) * vocab : nullptr;
  float repeat = 1.f, present = 0.f, frequent = 0.f;
  if (counts) {
    repeat = repetition[row];
    present = presence[row];
    frequent = frequency[row];
  }
  const bool drawn = temperature[row] >= GREEDY_BELOW, lists = edits.count | stops.count;
  const logit* from = logits + static_cast<long long>(entry) * stride;
  float* to = edited + static_cast<size_t>(entry) * vocab;

  const int tiles = (vocab + TILE - 1) / TILE;
  for (int t = blockIdx.y; t < tiles; t += gridDim.y) {
    const int begin = t * TILE, end = min(TILE, vocab - begin) + begin;
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int id = begin + j * EDIT_THREADS + threadIdx.x;
      if (id < end) {
        float x = to_logit(from[id]);
        const u64 here = candidate(rank_of(x), id);
        best_raw = min(best_raw, here);
        const bool by_mask = has_bit(mask, id), by_list = has_bit(allowed, id);
        if (mask ? by_mask : by_list) best_kept = min(best_kept, here);
        if (mask && by_mask) lowest = min(lowest, static_cast<u64>(id));
        if (!by_mask || !by_list) x = MINUS_INF;
        tile[id - begin] = x;
      }
    }
    if (lists) {   // the same for the whole block
      __syncthreads();   // the tile is there
      for (int i = lower_bound(edit_ids, edits, begin) + threadIdx.x; i < edits.start + edits.count && edit_ids[i] < end; i += EDIT_THREADS)
        tile[edit_ids[i] - begin] += edit_values[i];
      __syncthreads();   // an id may be in both lists
      for (int i = lower_bound(stop_ids, stops, begin) + threadIdx.x; i < stops.start + stops.count && stop_ids[i] < end; i += EDIT_THREADS)
        tile[stop_ids[i] - begin] = MINUS_INF;
      __syncthreads();   // each thread goes on with its own
    }
#pragma unroll
    for (int j = 0; j < EACH; j++) {
      const int id = begin + j * EDIT_THREADS + threadIdx.x;
      if (id < end) {
        float x = tile[id - begin];
        if (counts) {
          const int tallied = counts[id], times = tallied >> 1;
          if (tallied > 0) x = x > 0.f ? x / repeat : x * repeat;
          // Rounded as the CPU rounds, not fused.
          x = __fadd_rn(x, -__fmul_rn(frequent, static_cast<float>(times)));
          if (times > 0) x = __fadd_rn(x, -present);
        }
        best_edited = min(best_edited, candidate(rank_of(x), id));
        if (drawn) to[id] = x;
      }
    }
  }
  best_raw = block_min(best_raw, scratch);
  best_kept = block_min(best_kept, scratch);
  best_edited = block_min(best_edited, scratch);
  lowest = block_min(lowest, scratch);
  if (threadIdx.x == 0) {
    result[0] = best_raw;
    result[1] = best_kept;
    result[2] = best_edited;
    result[3] = lowest;
  }
}

// tokens[e] and nan[e] (1: raw logits with NaN or +inf or all -inf, or a row that is not one; the token is then 0) from what edit_logits
// left; `edited` is only read. Adds the token to the row's tally. Entries' rows are all different. Grid (entries), THREADS threads.
// quanta: 2^quantum_bits, with vocab * quanta <= 2^53. top_k <= 0: off; top_p >= 1: off; min_p 0: off.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
draw_tokens(const float* __restrict__ edited, const u64* __restrict__ partial, int parts, int vocab, float quanta,
            const int* __restrict__ rows, const long long* __restrict__ positions, int num_rows, const float* __restrict__ temperature,
            const float* __restrict__ min_p, const int* __restrict__ top_k, const double* __restrict__ top_p, const u64* __restrict__ seed,
            int* __restrict__ tally, int num_slots, const int* __restrict__ slot_of, int num_masks, const int* __restrict__ mask_of,
            int* __restrict__ tokens, int* __restrict__ nan) {
  __shared__ u64 bins[BINS];
  __shared__ u64 scratch[32];
  __shared__ int token;
  const int entry = blockIdx.x, row = rows[entry], lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (threadIdx.x == 0) token = -1;   // the thread that will write it
  u64 best[PARTIAL];
#pragma unroll
  for (int b = 0; b < PARTIAL; b++) {
    best[b] = NO_BEST;
    for (int p = 0; p < parts; p++) best[b] = min(best[b], partial[(static_cast<size_t>(entry) * parts + p) * PARTIAL + b]);
  }
  if (row < 0 || row >= num_rows || !is_finite_rank(static_cast<unsigned>(best[0] >> 32))) {
    if (threadIdx.x == 0) {
      tokens[entry] = 0;
      nan[entry] = 1;
    }
    return;
  }
  const unsigned top_rank = static_cast<unsigned>(best[2] >> 32);
  const float warmth = temperature[row];
  const bool dead = !is_finite_rank(top_rank);
  if (dead || !(warmth >= GREEDY_BELOW)) {
    if (threadIdx.x == 0) {
      const bool masked = mask_of && mask_of[entry] >= 0 && mask_of[entry] < num_masks;
      // Nothing may be chosen: the best that the mask or the list allows, else any of the mask's, else the best.
      const u64 chosen = !dead ? best[2] : is_finite_rank(static_cast<unsigned>(best[1] >> 32)) ? best[1]
                         : !masked ? best[0] : best[3] != NO_BEST ? best[3] : 0ull;
      token = static_cast<int>(chosen & 0xffffffffull);
    }
  } else {
    const float top = logit_of(top_rank), floor_p = min_p[row];
    const float* x_of = edited + static_cast<size_t>(entry) * vocab;
    auto load = [&](int i) { return x_of[i]; };
    auto rank = [](int, float x) { return rank_of(x); };
    unsigned last = 0xffffffffu;   // the largest rank that stays
    const int k = top_k[row];
    if (k > 0 && k < vocab)
      last = select_key(vocab, bins, scratch, load, rank, [](int, float, unsigned) { return 1ull; },
                        [=](u64) { return static_cast<u64>(k); }).key;
    auto weight = [=](int, float x, unsigned r) { return r <= last ? weight_of(x - top, warmth, floor_p, quanta) : 0ull; };
    const double p = top_p[row];
    unsigned cut = last;
    if (p < 1.0)
      cut = select_key(vocab, bins, scratch, load, rank, weight,
                       [=](u64 total) { return static_cast<u64>(ceil(p * static_cast<double>(total))); }).key;
    // Sums of THREADS segments of neighbouring ids, each by a warp, then the segment and in it the id at which u times the total is passed.
    const int length = ((vocab + THREADS - 1) / THREADS + 31) / 32 * 32;
    auto quanta_of = [&](int id) {
      if (id >= vocab) return 0ull;
      const float x = x_of[id];
      return rank_of(x) <= cut ? weight_of(x - top, warmth, floor_p, quanta) : 0ull;
    };
    for (int s = warp; s < THREADS; s += WARPS) {
      const long long start = static_cast<long long>(s) * length;   // past the end of a large vocabulary by up to a segment per thread
      u64 sum = 0;
      if (start < vocab)
        for (int i = 0; i < length; i += 32) sum += quanta_of(static_cast<int>(start) + i + lane);
#pragma unroll
      for (int m = 16; m; m >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, m);
      if (lane == 0) bins[s] = sum;
    }
    __syncthreads();   // the segments' sums are there
    u64 total;
    const u64 mine = bins[threadIdx.x], upto = block_scan(mine, scratch, total);
    const double u = static_cast<double>(philox52(seed[row], static_cast<u64>(positions[entry]), 0u)) * 2.220446049250313e-16;   // 2^-52
    const u64 target = static_cast<u64>(u * static_cast<double>(total));   // below total: u has 52 bits; rounded down, as sums are integers
    if (upto - mine <= target && target < upto) {   // true of one thread
      scratch[0] = static_cast<u64>(threadIdx.x);
      scratch[1] = upto - mine;
    }
    __syncthreads();   // the segment is known
    if (warp == 0) {
      const int start = static_cast<int>(scratch[0]) * length;
      u64 before = scratch[1];
      for (int i = 0; i < length; i += 32) {
        const u64 sum = warp_scan(quanta_of(start + i + lane)) + before;
        const unsigned passed = __ballot_sync(FULL_WARP, sum > target);
        if (passed) {
          if (lane == 0) token = start + i + __ffs(passed) - 1;
          break;
        }
        before = __shfl_sync(FULL_WARP, sum, 31);
      }
    }
  }
  if (threadIdx.x == 0) {   // the thread that wrote `token`
    const bool found = token >= 0 && token < vocab;   // always, unless `edited` is not what edit_logits left
    tokens[entry] = found ? token : 0;
    nan[entry] = !found;
    const int slot = slot_of ? slot_of[row] : -1;
    if (found && slot >= 0 && slot < num_slots) tally[static_cast<size_t>(slot) * vocab + token] += 2;
  }
}

// tally[slots[i]] from histories: tokens[starts[i] .. starts[i + 1]), of which the first num_prompt[i] are the prompt. Slots are all
// different; ids and slots that do not exist are left out. Grid (histories), THREADS threads.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
tally_history(int* __restrict__ tally, int num_slots, int vocab, const int* __restrict__ slots, const int* __restrict__ tokens,
              const long long* __restrict__ starts, const int* __restrict__ num_prompt) {
  const int slot = slots[blockIdx.x];
  if (slot < 0 || slot >= num_slots) return;
  int* counts = tally + static_cast<size_t>(slot) * vocab;
  for (int id = threadIdx.x; id < vocab; id += THREADS) counts[id] = 0;
  __syncthreads();   // all are zero
  const long long start = starts[blockIdx.x], output = start + num_prompt[blockIdx.x], end = starts[blockIdx.x + 1];
  for (long long i = start + threadIdx.x; i < end; i += THREADS) {
    const int id = tokens[i];
    if (id < 0 || id >= vocab) continue;
    if (i < output) atomicOr(&counts[id], 1);
    else atomicAdd(&counts[id], 2);
  }
}
