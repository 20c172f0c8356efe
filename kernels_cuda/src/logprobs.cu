// Log-probabilities under the model itself: of given tokens, their ranks, and the most likely tokens beside them.
//
// The ladder
//   1. gpu_workers.sampling.logprobs: torch, exponentials of the whole batch, a top-k with a slow way for ties.
//   2. this: one block per entry that reads its logits 3 times, 6 with alternatives (radix select of the width-th largest, see select.cuh),
//      3 more where that one is tied and only the lowest ids of the ties belong in the list.
//      Expected (not measured): 10 microseconds for an entry of 128k; few entries ask for it.
// Sums are of integers and the list is sorted by (logit, id) at the end: nothing depends on order or batch.
#include "select.cuh"

#define MAX_WIDTH 32

// For entry i of the grid: logits of row at[i], token tokens[i]. logprob and rank (1 + how many are more likely) of the token; the
// widths[i] most likely tokens, equal ones by ascending id, then -1 and 0, up to `columns` of them. A token outside the vocabulary has
// logprob -inf and rank vocab; logits without a finite maximum give NaN, rank 0 and no list. Grid (entries), THREADS threads.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
report_logprobs(const logit* __restrict__ logits, long long stride, int num_rows, int vocab, float quanta, const int* __restrict__ at,
                const int* __restrict__ tokens, const int* __restrict__ widths, int columns, float* __restrict__ logprob,
                int* __restrict__ rank, int* __restrict__ top_ids, float* __restrict__ top_logprobs) {
  __shared__ u64 bins[BINS];
  __shared__ u64 scratch[32];
  __shared__ u64 listed[MAX_WIDTH];
  __shared__ int filled;
  __shared__ double normaliser;
  const int entry = blockIdx.x, row = at[entry], token = tokens[entry];
  const bool known = token >= 0 && token < vocab, exists = row >= 0 && row < num_rows;
  const logit* from = logits + static_cast<long long>(exists ? row : 0) * stride;
  auto load = [&](int i) { return to_logit(from[i]); };
  const size_t out = static_cast<size_t>(entry) * columns;
  const int width = min(max(widths[entry], 0), min(min(columns, vocab), MAX_WIDTH));
  for (int c = threadIdx.x; c < columns; c += THREADS)
    if (c >= width || !exists) {
      top_ids[out + c] = -1;
      top_logprobs[out + c] = 0.f;
    }
  u64 best = exists ? NO_BEST : 0ull;
  if (exists)
#pragma unroll 4
    for (int i = threadIdx.x; i < vocab; i += THREADS) best = min(best, static_cast<u64>(rank_of(load(i))));
  const unsigned top_rank = static_cast<unsigned>(block_min(best, scratch));
  if (!is_finite_rank(top_rank)) {
    if (threadIdx.x == 0) {
      logprob[entry] = NOT_A_NUMBER;
      rank[entry] = 0;
    }
    for (int c = threadIdx.x; c < width; c += THREADS) {
      top_ids[out + c] = -1;
      top_logprobs[out + c] = 0.f;
    }
    return;
  }
  const float top = logit_of(top_rank), value = known ? load(token) : 0.f;
  u64 sum = 0, above = 0, total, total_above;
#pragma unroll 4
  for (int i = threadIdx.x; i < vocab; i += THREADS) {
    const float x = load(i);
    sum += weight_of(x - top, 1.f, 0.f, quanta);
    above += x > value;
  }
  block_scan(sum, scratch, total);
  block_scan(above, scratch, total_above);
  if (threadIdx.x == 0) {
    normaliser = static_cast<double>(top) + log(static_cast<double>(total) / static_cast<double>(quanta));
    logprob[entry] = known ? static_cast<float>(static_cast<double>(value) - normaliser) : MINUS_INF;
    rank[entry] = known ? static_cast<int>(total_above) + 1 : vocab;
    filled = 0;
  }
  if (width == 0) return;   // the same for the whole block
  auto ranked = [](int, float x) { return rank_of(x); };
  const Selected kth = select_key(vocab, bins, scratch, load, ranked, [](int, float, unsigned) { return 1ull; },
                                  [=](u64) { return static_cast<u64>(width); });   // its barriers show `normaliser` and `filled` to all
  const u64 missing = width - kth.before;   // so many of those that equal the last are listed
  unsigned last_id = 0xffffffffu;
  if (missing < kth.at)
    last_id = select_key(vocab, bins, scratch, load, [](int i, float) { return static_cast<unsigned>(i); },
                         [=](int, float x, unsigned) { return rank_of(x) == kth.key ? 1ull : 0ull; }, [=](u64) { return missing; }).key;
  for (int i = threadIdx.x; i < vocab; i += THREADS) {
    const unsigned r = rank_of(load(i));
    if (r < kth.key || (r == kth.key && static_cast<unsigned>(i) <= last_id)) {
      const int place = atomicAdd(&filled, 1);
      if (place < MAX_WIDTH) listed[place] = candidate(r, i);
    }
  }
  __syncthreads();   // the list is full, in some order
  if (static_cast<int>(threadIdx.x) < width) {
    const u64 mine = listed[threadIdx.x];
    int place = 0;
    for (int c = 0; c < width; c++) place += listed[c] < mine;
    top_ids[out + place] = static_cast<int>(mine & 0xffffffffull);
    top_logprobs[out + place] = static_cast<float>(static_cast<double>(logit_of(static_cast<unsigned>(mine >> 32))) - normaliser);
  }
}
