// Hopper's warpgroup products (wgmma), the fences they need, and setmaxnreg: what hopper.cuh's CPU branches call.
//
// Layouts are those of the PTX manual, "Asynchronous Warpgroup Level Matrix Instructions"; the canonical forms of an operand in shared
// memory are easiest to read in CuTe's mma_traits_sm90_gmma.hpp. What is modelled of the asynchrony:
//   - A product is done when it is waited for, and other threads get as far ahead as barriers let them before that. Until then its
//     accumulators are NaN; they, and registers of A, must be found as they were left.
//   - Operands in shared memory must have come by cp.async, and a fence.proxy.async must lie between a copy's arrival and the product: in
//     the thread that copied, or in all threads of the warpgroup. A copy must not begin where a product under way may read.
//   - wgmma.fence must follow the start of the kernel, and each wait, before the next product.
// All are stricter than a GPU, which would compute something.
#pragma once

namespace emu {
constexpr int LANES = 128, ROWS = 64, DEPTH = 16;

// Rows x columns of one chain of products on the same registers.
struct Accumulators {
  int columns, chained = 0;      // products under way
  bool gathered = false;
  std::vector<float> saved, sum;   // as the lanes' registers were: [LANES][columns / 2]; as a matrix [ROWS][columns]
};
struct Product {
  struct Lane {
    float* d;
    const uint32_t* a;
    uint32_t a_as_given[4], fenced;
  } lane[LANES];
  int issued = 0, columns, group;
  bool bf16, accumulate, a_in_registers, b_transposed;
  uint64_t a, b;
  Accumulators* sums;
};
struct Warpgroup {
  std::deque<Product> under_way;
  long done = 0;                 // products before under_way.front()
  int here = 0, registers = 0;
};
inline Warpgroup warpgroups[8];

inline unsigned group_of_self() { return self->warp / 4; }
inline int lane_of_self() { return int(self->warp % 4 * 32 + self->lane); }
inline void start_warpgroups() {
  Unseen bookkeeping;
  for (auto& group : warpgroups) {
    for (auto& product : group.under_way)
      if (--product.sums->chained == 0) delete product.sums;
    group = Warpgroup{};
    group.registers = int(65536 / ((block.size + 127) / 128 * 128) / 8 * 8);
  }
}

// ---------------------------------------------------------------- operands in shared memory
// A shared address as descriptors know it, of 18 bits: here the place in the region of dynamic shared memory.
inline unsigned shared_address(const void* p) {
  const auto at = static_cast<const char*>(p) - dynamic_region;
  if (at < 0 || size_t(at) >= DYNAMIC_REGION) fail("wgmma: an operand outside dynamic shared memory");
  return unsigned(at);
}
struct Operand {
  unsigned start, leading, stride, width, mask;   // width: 16-byte pieces of a swizzled row
  Operand(uint64_t descriptor) {
    const auto field = [&](int bit) { return unsigned(descriptor >> bit & 0x3fff) << 4; };
    start = field(0), leading = field(16), stride = field(32);
    const unsigned swizzle = descriptor >> 62;
    width = swizzle ? 16u >> swizzle : 1;
    mask = width - 1;
    if (descriptor >> 49 & 7) fail("wgmma: the base offset of a descriptor must be 0 here");
  }
  // Where the 16 bytes stand that hold 8 numbers of one row (K-major: along K; MN-major: along M or N).
  const uint16_t* at(unsigned offset) const {
    const unsigned address = (start + offset) & 0x3ffff;
    const unsigned swizzled = address ^ (address >> 7 & mask) << 4;
    if (swizzled + 16 > DYNAMIC_REGION) fail("wgmma: a descriptor leads outside shared memory, to byte %u", swizzled);
    return reinterpret_cast<const uint16_t*>(dynamic_region + swizzled);
  }
  const uint16_t* k_major(unsigned row, unsigned piece) const {   // numbers 8 * piece .. of K
    return at(row / 8 * stride + row % 8 * width * 16 + piece * (mask ? 16 : leading));
  }
  const uint16_t* mn_major(unsigned k, unsigned piece) const {    // rows 8 * piece ..
    if (!mask) return at(piece * stride + k % 8 * 16 + k / 8 * leading);
    return at(piece / width * leading + piece % width * 16 + k % 8 * width * 16 + k / 8 * stride);
  }
};
// visit(pointer, row, k, step): 8 numbers, from (row, k) along k or along rows.
template <class Visit> void each_piece(const Operand& from, bool transposed, int rows, Visit visit) {
  if (transposed) {
    for (int k = 0; k < DEPTH; k++)
      for (int piece = 0; piece < rows / 8; piece++) visit(from.mn_major(k, piece), 8 * piece, k, true);
  } else {
    for (int row = 0; row < rows; row++)
      for (int piece = 0; piece < 2; piece++) visit(from.k_major(row, piece), row, 8 * piece, false);
  }
}
template <class Visit> void each_read(const Product& product, Visit visit) {
  const auto granule = [&](const uint16_t* p, int, int, bool) { visit((reinterpret_cast<const char*>(p) - dynamic_region) / 16); };
  each_piece(product.b, product.b_transposed, product.columns, granule);
  if (!product.a_in_registers) each_piece(product.a, false, ROWS, granule);
}
// Its reads begin: what they find must be visible to the asynchronous proxy.
__attribute__((noinline)) inline void begin_reads(const Product& product) {
  uint32_t fenced = UINT32_MAX;
  for (auto& lane : product.lane) fenced = std::min(fenced, lane.fenced);
  each_read(product, [&](size_t at) {
    Arrival& arrival = arrivals[at];
    const long byte = long(at * 16) - (dynamic_shared() - dynamic_region);
    if (!arrival.time) fail("wgmma reads shared memory at byte %ld, to which no cp.async has come", byte);
    if (fenced < arrival.time && block.fibers[arrival.writer].fenced < arrival.time)
      fail("wgmma reads shared memory at byte %ld with no fence.proxy.async since the copy to there has come", byte);
    arrival.readers++;
  });
}

// ---------------------------------------------------------------- products
// Where lane l holds register r of an accumulator: rows of its warp, neighbours of each 8 columns.
inline int row_of(int l, int r) { return l / 32 * 16 + l % 32 / 4 + 8 * (r >> 1 & 1); }
inline int column_of(int l, int r) { return r / 4 * 8 + 2 * (l % 4) + (r & 1); }

// Most of a kernel's time here, and sources with planted bugs are compiled with -Og.
__attribute__((noinline, optimize("O3")))
inline void add_product(float* sum, const float (&A)[ROWS][DEPTH], const float (&B)[DEPTH][256], int n) {
  for (int i = 0; i < ROWS; i++)
    for (int k = 0; k < DEPTH; k++)
      for (int j = 0; j < n; j++) sum[i * n + j] += A[i][k] * B[k][j];
}
__attribute__((noinline)) inline void multiply(const Product& product) {
  Accumulators& sums = *product.sums;
  const int n = product.columns;
  if (!sums.gathered) {
    for (int l = 0; l < LANES; l++)
      for (int r = 0; r < n / 2; r++) sums.sum[row_of(l, r) * n + column_of(l, r)] = sums.saved[l * (n / 2) + r];
    sums.gathered = true;
  }
  const auto number = [&](uint16_t bits) { return product.bf16 ? from_bf16(bits) : from_fp16(bits); };
  static float A[ROWS][DEPTH], B[DEPTH][256];
  if (product.a_in_registers) {
    for (int l = 0; l < LANES; l++)
      for (int r = 0; r < 4; r++)
        for (int h = 0; h < 2; h++)
          A[l / 32 * 16 + l % 32 / 4 + 8 * (r & 1)][2 * (l % 4) + h + 8 * (r >> 1)] = number(uint16_t(product.lane[l].a[r] >> 16 * h));
  } else {
    each_piece(product.a, false, ROWS, [&](const uint16_t* p, int row, int k, bool) {
      for (int i = 0; i < 8; i++) A[row][k + i] = number(p[i]);
    });
  }
  each_piece(product.b, product.b_transposed, n, [&](const uint16_t* p, int row, int k, bool along_rows) {
    for (int i = 0; i < 8; i++) B[along_rows ? k : k + i][along_rows ? row + i : row] = number(p[i]);
  });
  if (!product.accumulate) std::fill(sums.sum.begin(), sums.sum.end(), 0.f);
  add_product(sums.sum.data(), A, B, n);
}
// The oldest product under way becomes visible.
__attribute__((noinline)) inline void complete(Warpgroup& group) {
  Product& product = group.under_way.front();
  for (auto& lane : product.lane)
    if (product.a_in_registers && memcmp(lane.a, lane.a_as_given, sizeof lane.a_as_given))
      fail("wgmma: registers of A were written before the product was waited for");
  multiply(product);
  each_read(product, [](size_t at) { arrivals[at].readers--; });
  Accumulators* sums = product.sums;
  if (--sums->chained == 0) {
    const int n = product.columns;
    for (int l = 0; l < LANES; l++)
      for (int r = 0; r < n / 2; r++) {
        float& d = product.lane[l].d[r];
        if (std::bit_cast<uint32_t>(d) != UINT32_MAX) fail("wgmma: accumulators were written before the product was waited for");
        d = sums->sum[row_of(l, r) * n + column_of(l, r)];
      }
    delete sums;
  }
  group.under_way.pop_front();
  group.done++;
}
// One thread's part of a product: d (N / 2 registers) is a * b, and d before it if `accumulate`. a: four registers, or null for a
// descriptor.
template <bool BF16, int N>
__attribute__((noinline)) const Product& issue(float* d, const uint32_t* a, uint64_t a_descriptor, uint64_t b, bool b_transposed, bool accumulate) {
  Unseen bookkeeping;
  static_assert(N % 8 == 0 && N <= 256, "");
  if (!self->registers_ordered) fail("wgmma.mma_async without a wgmma.fence since the kernel's start or the last wait");
  if ((group_of_self() + 1) * LANES > block.size) fail("wgmma.mma_async: the warpgroup is not whole");
  Warpgroup& group = warpgroups[group_of_self()];
  const int l = lane_of_self();
  const size_t index = size_t(self->products++ - group.done);
  const bool first = index == group.under_way.size();
  if (first) {
    group.under_way.emplace_back();
    Product& made = group.under_way.back();
    made.columns = N, made.group = self->product_group, made.bf16 = BF16, made.accumulate = accumulate;
    made.a_in_registers = a != nullptr, made.b_transposed = b_transposed, made.a = a_descriptor, made.b = b, made.sums = nullptr;
  }
  Product& product = group.under_way[index];
  if (product.columns != N || product.group != self->product_group || product.bf16 != BF16 || product.accumulate != accumulate ||
      product.a_in_registers != (a != nullptr) || product.b_transposed != b_transposed || product.a != a_descriptor || product.b != b)
    fail("wgmma.mma_async: the threads of the warpgroup do not agree on the product");
  Product::Lane& lane = product.lane[l];
  lane.d = d, lane.a = a, lane.fenced = self->fenced;
  if (a) memcpy(lane.a_as_given, a, sizeof lane.a_as_given);
  Accumulators* chain = nullptr;
  for (size_t i = 0; i < index; i++)
    if (group.under_way[i].lane[l].d == d) chain = group.under_way[i].sums;
  if (!product.sums) {
    product.sums = chain ? chain : new Accumulators{N, 0, false, std::vector<float>(LANES * N / 2), std::vector<float>(ROWS * N)};
    product.sums->chained++;
  }
  if (chain && (chain != product.sums || chain->columns != N)) fail("wgmma.mma_async: two products share some accumulators");
  if (!chain) {
    memcpy(&product.sums->saved[l * (N / 2)], d, N / 2 * sizeof(float));
    memset(d, POISON, N / 2 * sizeof(float));
  }
  if (++product.issued == LANES) begin_reads(product);
  return product;
}
template <bool BF16, int N>
void wgmma(float* d, const uint32_t* a, uint64_t a_descriptor, uint64_t b, bool b_transposed, bool accumulate) {
  [[maybe_unused]] const Product& product = issue<BF16, N>(d, a, a_descriptor, b, b_transposed, accumulate);
  // Each warp reads what the product needs of shared memory, for the sanitizer by its first lane.
  EMU_TSAN(if (self->lane == 0) each_read(product, [](size_t at) { reads(dynamic_region + 16 * at, 16); });)
}
inline void wgmma_fence() { self->registers_ordered = true; }
inline void wgmma_commit() { self->product_group++; }
__attribute__((noinline)) inline void wgmma_wait(int groups_left) {
  Unseen bookkeeping;
  Warpgroup& group = warpgroups[group_of_self()];
  self->registers_ordered = false;
  if (++group.here < LANES) {
    wait_here("wgmma.wait_group");
    return;
  }
  group.here = 0;
  for (int turn = 0; turn < 4; turn++) next_fiber();   // whoever may go on meanwhile does
  while (!group.under_way.empty() && group.under_way.front().group < self->product_group - groups_left) {
    if (group.under_way.front().issued < LANES) fail("wgmma.wait_group: some threads of the warpgroup did not issue what others wait for");
    complete(group);
  }
  for (unsigned i = 0; i < LANES; i++) block.fibers[group_of_self() * LANES + i].blocked = false;
}

// ---------------------------------------------------------------- registers of a warpgroup
__attribute__((noinline)) inline void setmaxnreg(int registers, bool more) {
  Unseen bookkeeping;
  if (registers % 8 || registers < 24 || registers > 256) fail("setmaxnreg: %d is no multiple of 8 from 24 to 256", registers);
  const unsigned mine = group_of_self(), groups = (block.size + 127) / 128;
  const int before = warpgroups[mine].registers;
  if (before != registers && more != (registers > before))
    fail("setmaxnreg.%s to %d registers from %d", more ? "inc" : "dec", registers, before);
  long seen = progress;
  for (int turn = 0;; turn++) {
    if (seen != progress) turn = 0;
    seen = progress;
    int others = 0;
    for (unsigned i = 0; i < groups; i++) others += i == mine ? 0 : warpgroups[i].registers;
    if ((others + registers) * LANES <= 65536) break;
    if (turn > 50) fail("setmaxnreg.inc: %d registers per thread never become free", registers);
    next_fiber();
  }
  warpgroups[mine].registers = registers;
}
}  // namespace emu
