// cp.async, bulk copies and mbarriers: what ptx.cuh's CPU branches call.
#pragma once

namespace emu {
inline bool in_dynamic_shared(const void* p) { return p >= dynamic_region && p < dynamic_region + DYNAMIC_REGION; }
// The bytes arrive only when the thread waits for their group; until then the destination is NaN. Past from_bytes comes zero.
__attribute__((noinline)) inline void cp_async(void* to, const void* from, unsigned bytes, unsigned from_bytes) {
  if ((uintptr_t(to) | uintptr_t(from_bytes ? from : to)) % bytes) fail("cp.async: address not %u-byte aligned", bytes);
  if (in_dynamic_shared(to) && arrivals[(static_cast<char*>(to) - dynamic_region) / 16].readers)
    fail("cp.async to shared memory at byte %ld, which a wgmma under way may read", long(static_cast<char*>(to) - dynamic_shared()));
  writes(to, bytes);
  Unseen bookkeeping;
  memset(to, POISON, bytes);
  self->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, from_bytes, self->group});
}
inline void cp_async_commit() { self->group++; }
__attribute__((noinline)) inline void arrive(const PendingCopy& copy, size_t thread) {
  Unseen bookkeeping;
  memcpy(copy.to, copy.from, copy.from_bytes);
  memset(copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
  if (!in_dynamic_shared(copy.to)) return;
  Arrival& arrival = arrivals[(copy.to - dynamic_region) / 16];
  arrival.time = ++now;
  arrival.writer = uint16_t(thread);
}
// Makes what came by cp.async visible to the asynchronous proxy, in which wgmma reads; see warpgroup.h.
__attribute__((noinline)) inline void fence_proxy_async() {
  Unseen bookkeeping;
  self->fenced = ++now;
}
inline void cp_async_wait(int groups_left) {
  size_t kept = 0;
  for (auto& copy : self->copies) {
    if (copy.group >= self->group - groups_left) {
      self->copies[kept++] = copy;
      continue;
    }
    writes(copy.to, copy.bytes);
    arrive(copy, size_t(self - block.fibers.data()));
  }
  self->copies.resize(kept);
}

// An mbarrier (sm_90): 64 bits of shared memory that count arrivals and bytes still to come. A bulk copy is done at issue here.
struct MBarrier {
  int16_t need, left;
  int32_t bytes_and_phase;   // bytes to come << 1 | phase
  int phase() const { return bytes_and_phase & 1; }
};
// Copies whose arrival counts at an mbarrier. They come when somebody asks for its phase, and no sooner.
struct Delivery {
  uint64_t* at;
  size_t thread;
  std::vector<PendingCopy> copies;
};
struct Sleeper {
  uint64_t* at;
  Fiber* fiber;
};
inline std::vector<Delivery> deliveries;
inline std::vector<Sleeper> sleepers;   // threads that wait at an mbarrier, in the order of their coming
inline void start_copies() {
  Unseen bookkeeping;
  deliveries.clear();
  sleepers.clear();
  memset(arrivals, 0, sizeof arrivals);
}
// What the sanitizer is told of: a phase and the next one are told apart, as the uses of a Barrier are.
inline char* phase_of(uint64_t* at, int phase) { return reinterpret_cast<char*>(at) + phase; }
inline void wake(const uint64_t* at, size_t most) {
  size_t kept = 0;
  for (auto& sleeper : sleepers) {
    if (sleeper.at == at && most) {
      sleeper.fiber->blocked = false;
      most--;
    } else {
      sleepers[kept++] = sleeper;
    }
  }
  sleepers.resize(kept);
}
inline bool phase_ends(uint64_t* at) {
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  if (barrier->left || barrier->bytes_and_phase >> 1) return false;
  progress++;
  barrier->left = barrier->need;
  barrier->bytes_and_phase ^= 1;
  wake(at, SIZE_MAX);
  return true;
}
// Less is missing than before: ends the phase, or wakes a thread that asks for the copies which end it.
__attribute__((noinline)) inline void mbarrier_advance(uint64_t* at) {
  if (phase_ends(at) || sleepers.empty()) return;
  int coming = 0;
  for (auto& delivery : deliveries) coming += delivery.at == at;
  if (coming && coming >= reinterpret_cast<MBarrier*>(at)->left) wake(at, 1);
}
__attribute__((noinline)) inline void mbarrier_init(uint64_t* at, int need) {
  writes(at, 8);   // which must have happened before all else that is done with it
  Unseen bookkeeping;
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  barrier->need = barrier->left = int16_t(need);
  barrier->bytes_and_phase = 0;
}
__attribute__((noinline)) inline void mbarrier_arrive(uint64_t* at, int bytes) {
  reads(at, 8);
  Unseen bookkeeping;
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  publish(phase_of(at, barrier->phase()));
  barrier->bytes_and_phase += bytes * 2;
  barrier->left--;
  mbarrier_advance(at);
}
__attribute__((noinline)) inline void cp_async_mbarrier_arrive(uint64_t* at) {
  reads(at, 8);
  Unseen bookkeeping;
  publish(phase_of(at, reinterpret_cast<MBarrier*>(at)->phase()));
  deliveries.push_back({at, size_t(self - block.fibers.data()), std::move(self->copies)});
  self->copies.clear();
  mbarrier_advance(at);
}
__attribute__((noinline)) inline void deliver(uint64_t* at) {
  Unseen bookkeeping;
  size_t kept = 0;
  for (auto& delivery : deliveries) {
    if (delivery.at != at) {
      if (&deliveries[kept] != &delivery) deliveries[kept] = std::move(delivery);
      kept++;
      continue;
    }
    for (auto& copy : delivery.copies) arrive(copy, delivery.thread);
    reinterpret_cast<MBarrier*>(at)->left--;
    phase_ends(at);
  }
  deliveries.erase(deliveries.begin() + long(kept), deliveries.end());
}
__attribute__((noinline)) inline void mbarrier_wait(uint64_t* at, int phase) {
  reads(at, 8);
  Unseen bookkeeping;
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  deliver(at);
  while (barrier->phase() == phase) {
    sleepers.push_back({at, self});
    wait_here("mbarrier");
    deliver(at);
  }
  observe(phase_of(at, phase));
}
__attribute__((noinline)) inline void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* at) {
  if ((uintptr_t(to) | uintptr_t(from) | bytes) & 15) fail("cp.async.bulk: not 16-byte aligned");
  writes(to, bytes);
  reads(at, 8);
  Unseen bookkeeping;
  memcpy(to, from, bytes);
  reinterpret_cast<MBarrier*>(at)->bytes_and_phase -= int(bytes) * 2;
  mbarrier_advance(at);
}
}  // namespace emu
