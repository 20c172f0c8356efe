// The machine: fibers, block barriers, the order of threads, and the launch of a grid.
#pragma once

extern "C" __attribute__((visibility("hidden"))) void emu_switch(void** save_stack_pointer, void* load_stack_pointer);
#if defined(__x86_64__)
asm(".text\n.hidden emu_switch\n.globl emu_switch\n.type emu_switch,@function\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size emu_switch,.-emu_switch\n");
#else
#error "the context switch of tests/cuda_on_cpu is written for x86-64 only"
#endif

namespace emu {
constexpr size_t STACK = 128 << 10;

// A cp.async that was issued and not yet waited for.
struct PendingCopy {
  char* to;
  const char* from;
  unsigned bytes, from_bytes;
  int group;
};
struct Fiber {
  void* stack_pointer;
  char* stack;
  uint3 thread;
  unsigned lane, warp;
  bool done, blocked;
  const char* waits_at;
  int group;              // number of cp.async groups committed
  long products;          // of wgmma, issued
  int product_group;      // number of wgmma groups committed
  bool registers_ordered; // by wgmma.fence, since the start or the last wait
  uint32_t fenced;        // time of the last fence.proxy.async
  long barrier_result;
  std::vector<PendingCopy> copies;
  void* tsan;
};
// A warp collective that some lanes have reached; `kind` tells one collective from another.
struct Collective {
  unsigned mask = 0, here = 0;
  const void* kind = nullptr;
  void* payload[32];
};
struct Barrier {
  unsigned here = 0, need = 0;
  long sum = 0;
  std::vector<Fiber*> waiting;
  // What the sanitizer is told of, in turns: a thread that resumes late must not seem ordered after those who already came to the
  // next use of this barrier. The one after that cannot begin before this thread has come to the next.
  unsigned use = 0;
  char uses[2];
};
struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned> order;
  unsigned size = 0, at = 0, alive = 0;
  Barrier barriers[16];
  std::vector<std::vector<Collective>> warps;
  void* main_stack_pointer;
  void* main_tsan;
};

inline Block block;
inline Fiber* self = nullptr;                 // the running thread; null outside a launch
inline uint3 block_index;
inline dim3 grid_dim, block_dim;
inline void (*call_kernel)(void*);
inline void* call_argument;
inline bool greedy = false;                   // see Config::seed
inline long progress = 0;                     // rises with whatever happens, but not with a thread that asks again whether it may go on
inline bool failed = false;
inline char error_text[512];

inline void jump(void** save, Fiber* to) {    // to == nullptr: back to the launch
  EMU_TSAN(__tsan_switch_to_fiber(to ? to->tsan : block.main_tsan, 1 /* orders nothing */);)
  emu_switch(save, to ? to->stack_pointer : block.main_stack_pointer);
}
// Leaves the block for good; its fibers are thrown away with whatever they held.
[[noreturn]] __attribute__((noinline)) inline void fail(const char* format, ...) {
  Unseen bookkeeping;
  char text[400];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  failed = true;
  snprintf(error_text, sizeof error_text, "block (%u,%u,%u) thread (%u,%u,%u): %s", block_index.x, block_index.y, block_index.z,
           self->thread.x, self->thread.y, self->thread.z, text);
  void* nowhere;
  jump(&nowhere, nullptr);
  abort();
}
inline void on_fault(int, siginfo_t* info, void*) {
  if (!self) abort();
  if (in_dynamic_guard(info->si_addr)) {
    long at = static_cast<char*>(info->si_addr) - dynamic_shared();
    fail("touched dynamic shared memory at byte %ld of %zu", at, dynamic_bytes);
  }
  fail("touched memory at %p that is not there (past the end of an array?)", info->si_addr);
}

// The thread that runs next: the next one in turn that can, or when `from_first` the first in order. Null when all have exited.
inline Fiber* choose_fiber(bool from_first) {
  if (from_first) block.at = block.size - 1;
  for (unsigned i = 0; i < block.size; i++) {
    if (++block.at == block.size) block.at = 0;
    Fiber* other = &block.fibers[block.order[block.at]];
    if (!other->done && !other->blocked) return other;
  }
  if (block.alive == 0) return nullptr;
  unsigned stuck = 0;
  for (auto& fiber : block.fibers) stuck += !fiber.done;
  for (auto& fiber : block.fibers)
    if (!fiber.done) {
      self = &fiber;
      break;
    }
  fail("deadlock: %u of %u threads wait for threads that exited or took another branch; this one waits at %s", stuck, block.size,
       self->waits_at);
}
// Leaves the running thread and enters the next one.
__attribute__((noinline)) inline void next_fiber(bool from_first = false) {
  Fiber *me, *other;
  {
    Unseen bookkeeping;
    me = self;
    other = choose_fiber(from_first);
    if (other == me) return;
    if (other) self = other;
  }
  jump(&me->stack_pointer, other);
}
__attribute__((noinline)) inline void wait_here(const char* what) {
  Unseen bookkeeping;
  progress++;
  self->blocked = true;
  self->waits_at = what;
  while (self->blocked) next_fiber(greedy);
}

inline void open_barrier(Barrier& barrier) {
  for (auto& fiber : block.fibers) fiber.barrier_result = barrier.sum;
  for (auto* fiber : barrier.waiting) fiber->blocked = false;
  barrier.waiting.clear();
  barrier.here = 0;
  barrier.sum = 0;
  barrier.use++;
}
// Returns the sum of `value` over the threads that meet. need 0: all threads that have not exited, as for barrier 0 of a GPU.
__attribute__((noinline)) inline long meet(unsigned id, unsigned need, long value, const char* what) {
  Unseen bookkeeping;
  Barrier& barrier = block.barriers[id];
  barrier.need = need;
  barrier.sum += value;
  barrier.here++;
  char* const use = &barrier.uses[barrier.use % 2];
  publish(use);
  if (barrier.here >= (need ? need : block.alive)) {
    open_barrier(barrier);
  } else {
    barrier.waiting.push_back(self);
    wait_here(what);
  }
  observe(use);
  return self->barrier_result;
}
__attribute__((noinline)) inline void finish(Fiber* fiber) {
  Unseen bookkeeping;
  progress++;
  fiber->done = true;
  block.alive--;
  Barrier& barrier = block.barriers[0];
  if (barrier.here && !barrier.need && barrier.here >= block.alive) open_barrier(barrier);
}
inline void fiber_main() {
  observe(&block);
  call_kernel(call_argument);
  publish(&block);
  finish(self);
  next_fiber(greedy);
  abort();
}

inline uint64_t random_bits(uint64_t& state) {   // SplitMix64
  state += 0x9e3779b97f4a7c15ull;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}
// Any order of all threads; when greedy, any order of warps, since a warp gets far ahead only with all its lanes.
inline void shuffle_threads(uint64_t seed) {
  const unsigned unit = greedy ? 32 : 1, units = (block.size + unit - 1) / unit;
  std::vector<unsigned> at(units);
  for (unsigned i = 0; i < units; i++) at[i] = i;
  for (unsigned i = units - 1; i > 0; i--) std::swap(at[i], at[random_bits(seed) % (i + 1)]);
  unsigned filled = 0;
  for (unsigned u : at)
    for (unsigned i = u * unit; i < std::min(block.size, (u + 1) * unit); i++) block.order[filled++] = i;
}
inline void start_copies();       // asynchronous.h
inline void start_warpgroups();   // warpgroup.h
inline std::vector<char*> stacks;
__attribute__((noinline)) inline void start_block(uint3 index, uint64_t seed) {
  Unseen bookkeeping;
  block_index = index;
  block.size = block.alive = block_dim.x * block_dim.y * block_dim.z;
  block.fibers.resize(block.size);
  block.order.resize(block.size);
  while (stacks.size() < block.size)
    stacks.push_back(static_cast<char*>(
        mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)));
  block.warps.assign((block.size + 31) / 32, {});
  for (auto& barrier : block.barriers) barrier = Barrier{};
  for (unsigned i = 0; i < block.size; i++) {
    Fiber& fiber = block.fibers[i];
    fiber.stack = stacks[i];
    fiber.lane = i % 32;
    fiber.warp = i / 32;
    fiber.done = fiber.blocked = false;
    fiber.group = fiber.product_group = 0;
    fiber.products = 0;
    fiber.registers_ordered = false;
    fiber.fenced = 0;
    fiber.copies.clear();
    fiber.thread = {i % block_dim.x, i / block_dim.x % block_dim.y, i / (block_dim.x * block_dim.y)};
    block.order[i] = i;
    void** top = reinterpret_cast<void**>(fiber.stack + STACK);
    *--top = nullptr;                                        // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    fiber.stack_pointer = top;
  }
  if (seed) shuffle_threads(seed);
  poison_shared();
  start_copies();
  start_warpgroups();
  EMU_TSAN(block.main_tsan = __tsan_get_current_fiber(); for (auto& fiber : block.fibers) fiber.tsan = __tsan_create_fiber(0);)
  block.at = 0;
  self = &block.fibers[block.order[0]];
}
__attribute__((noinline)) inline long end_block() {
  Unseen bookkeeping;
  EMU_TSAN(if (!failed) for (auto& fiber : block.fibers) __tsan_destroy_fiber(fiber.tsan);)   // not within an Unseen, which fail() leaves
  self = nullptr;
  return failed ? LONG_MAX : stray_write();
}
inline void run_block(uint3 index, uint64_t seed) {
  start_block(index, seed);
  publish(&block);
  jump(&block.main_stack_pointer, self);
  observe(&block);
  const long stray = end_block();
  if (stray != LONG_MAX) {
    failed = true;
    snprintf(error_text, sizeof error_text, "block (%u,%u,%u): wrote dynamic shared memory at byte %ld of %zu", index.x, index.y, index.z,
             stray, dynamic_bytes);
  }
}

struct Config {   // mirrored by emulator.py
  unsigned grid[3], block[3];
  size_t shared;
  // 0: threads take turns in ascending order. Otherwise they are shuffled; with bit 0 the blocks run backwards, and with bit 1 the threads
  // do not take turns: whoever comes first runs until it waits, so that one warp gets as far ahead of the others as barriers allow.
  uint64_t seed;
};
inline int run_grid(const Config& config, void (*call)(void*), void* argument) {
  const unsigned* g = config.grid;
  const unsigned* b = config.block;
  if (size_t(b[0]) * b[1] * b[2] - 1 >= 1024 || !g[0] || !g[1] || !g[2] || g[1] > 65535 || g[2] > 65535 || config.shared > MAX_DYNAMIC_SHARED) {
    snprintf(error_text, sizeof error_text, "bad launch: grid (%u,%u,%u) block (%u,%u,%u) shared memory %zu", g[0], g[1], g[2], b[0], b[1],
             b[2], config.shared);
    return 1;
  }
  grid_dim = {g[0], g[1], g[2]};
  block_dim = {b[0], b[1], b[2]};
  call_kernel = call;
  call_argument = argument;
  failed = false;
  {
    Unseen bookkeeping;
    greedy = config.seed & 2;
  }
  map_dynamic_shared();
  dynamic_bytes = config.shared;
  struct sigaction ours {}, segv, bus;
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER;   // on_fault does not return
  sigaction(SIGSEGV, &ours, &segv);
  sigaction(SIGBUS, &ours, &bus);
  size_t total = size_t(g[0]) * g[1] * g[2];
  for (size_t i = 0; i < total && !failed; i++) {
    size_t j = config.seed & 1 ? total - 1 - i : i;
    uint3 index = {unsigned(j % g[0]), unsigned(j / g[0] % g[1]), unsigned(j / (size_t(g[0]) * g[1]))};
    run_block(index, config.seed ? config.seed * 1000003 + j : 0);
  }
  sigaction(SIGSEGV, &segv, nullptr);
  sigaction(SIGBUS, &bus, nullptr);
  return failed ? 2 : 0;
}
// params: one pointer per argument, as cuLaunchKernel takes them.
template <class... A> int launch(void (*kernel)(A...), const Config& config, void** params) {
  struct Call {
    void (*kernel)(A...);
    void** params;
  } call{kernel, params};
  auto run = [](void* argument) {
    auto* c = static_cast<Call*>(argument);
    [&]<size_t... I>(std::index_sequence<I...>) {
      c->kernel(*static_cast<std::remove_cv_t<A>*>(c->params[I])...);
    }(std::index_sequence_for<A...>{});
  };
  return run_grid(config, run, &call);
}
template <class... A> constexpr int count_arguments(void (*)(A...)) { return sizeof...(A); }
template <class... A> void argument_sizes(void (*)(A...), int* sizes) { ((*sizes++ = std::is_pointer_v<A> ? 0 : int(sizeof(A))), ...); }
}  // namespace emu

#define EMU_EXPORT extern "C" __attribute__((visibility("default")))
EMU_EXPORT inline __attribute__((used)) const char* emu_error() { return emu::error_text; }
// NAME is launched by emu_launch_NAME; emu_arguments_NAME tells each argument's size, 0 for a pointer, and returns their number.
#define EMU_KERNEL(NAME)                                                                                                     \
  EMU_EXPORT int emu_launch_##NAME(const emu::Config* config, void** params) { return emu::launch(NAME, *config, params); }   \
  EMU_EXPORT int emu_arguments_##NAME(int* sizes) {                                                                          \
    emu::argument_sizes(NAME, sizes);                                                                                        \
    return emu::count_arguments(NAME);                                                                                       \
  }

#define threadIdx (::emu::self->thread)
#define blockIdx (::emu::block_index)
#define blockDim (::emu::block_dim)
#define gridDim (::emu::grid_dim)
constexpr int warpSize = 32;

static inline void __syncthreads() { emu::meet(0, 0, 0, "__syncthreads"); }
static inline int __syncthreads_count(int p) { return int(emu::meet(0, 0, p != 0, "__syncthreads_count")); }
static inline int __syncthreads_or(int p) { return emu::meet(0, 0, p != 0, "__syncthreads_or") != 0; }
static inline int __syncthreads_and(int p) { return emu::meet(0, 0, p == 0, "__syncthreads_and") == 0; }
static inline void __threadfence() {}
static inline void __threadfence_block() {}
static inline void __threadfence_system() {}
static inline void __nanosleep(unsigned) {
  emu::progress++;
  emu::next_fiber();
}
