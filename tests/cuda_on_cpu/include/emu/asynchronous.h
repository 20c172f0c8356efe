// cp.async, bulk copies and mbarriers: what ptx.cuh's CPU branches call.
#pragma once

namespace emu {
inline bool in_dynamic_shared(const void* p) { return p >= dynamic_region && p < dynamic_region + DYNAMIC_REGION; }
// The bytes arrive only when the thread waits for their group; until then the destination is NaN. Past from_bytes comes zero.
inline void cp_async(void* to, const void* from, unsigned bytes, unsigned from_bytes) {
  if ((uintptr_t(to) | uintptr_t(from_bytes ? from : to)) % bytes) fail("cp.async: address not %u-byte aligned", bytes);
  if (in_dynamic_shared(to) && arrivals[(static_cast<char*>(to) - dynamic_region) / 16].readers)
    fail("cp.async to shared memory at byte %ld, which a wgmma under way may read", long(static_cast<char*>(to) - dynamic_shared()));
  writes(to, bytes);
  memset(to, POISON, bytes);
  self->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, from_bytes, self->group});
}
inline void cp_async_commit() { self->group++; }
__attribute__((noinline)) inline void arrive(const PendingCopy& copy, size_t thread) {
  memcpy(copy.to, copy.from, copy.from_bytes);
  memset(copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
  if (!in_dynamic_shared(copy.to)) return;
  Arrival& arrival = arrivals[(copy.to - dynamic_region) / 16];
  arrival.time = ++now;
  arrival.writer = uint16_t(thread);
}
// Makes what came by cp.async visible to the asynchronous proxy, in which wgmma reads; see warpgroup.h.
inline void fence_proxy_async() { self->fenced = ++now; }
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
};
inline void mbarrier_init(uint64_t* at, int need) {
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  barrier->need = barrier->left = int16_t(need);
  barrier->bytes_and_phase = 0;
  publish(at);
}
inline void mbarrier_complete(MBarrier* barrier) {
  if (barrier->left || barrier->bytes_and_phase >> 1) return;
  progress++;
  barrier->left = barrier->need;
  barrier->bytes_and_phase ^= 1;
}
inline void mbarrier_arrive(uint64_t* at, int bytes) {
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  publish(at);
  barrier->bytes_and_phase += bytes * 2;
  barrier->left--;
  mbarrier_complete(barrier);
}
// Copies whose arrival counts at an mbarrier. They come when somebody asks for its phase, and no sooner.
struct Delivery {
  uint64_t* at;
  size_t thread;
  std::vector<PendingCopy> copies;
};
inline std::vector<Delivery> deliveries;
inline void start_copies() {
  deliveries.clear();
  memset(arrivals, 0, sizeof arrivals);
}
inline void cp_async_mbarrier_arrive(uint64_t* at) {
  publish(at);
  deliveries.push_back({at, size_t(self - block.fibers.data()), std::move(self->copies)});
  self->copies.clear();
}
__attribute__((noinline)) inline void deliver(uint64_t* at) {
  size_t kept = 0;
  for (auto& delivery : deliveries) {
    if (delivery.at != at) {
      if (&deliveries[kept] != &delivery) deliveries[kept] = std::move(delivery);
      kept++;
      continue;
    }
    for (auto& copy : delivery.copies) arrive(copy, delivery.thread);
    auto* barrier = reinterpret_cast<MBarrier*>(at);
    barrier->left--;
    mbarrier_complete(barrier);
  }
  deliveries.erase(deliveries.begin() + long(kept), deliveries.end());
}
inline void mbarrier_wait(uint64_t* at, int phase) {
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  deliver(at);
  long seen = progress, turns = 0;
  for (; (barrier->bytes_and_phase & 1) == phase; turns++) {
    if (seen != progress) turns = 0;
    seen = progress;
    if (turns > 100) fail("mbarrier: never completes, for nothing else goes on");
    next_fiber();
    deliver(at);
  }
  observe(at);
}
inline void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* at) {
  if ((uintptr_t(to) | uintptr_t(from) | bytes) & 15) fail("cp.async.bulk: not 16-byte aligned");
  memcpy(to, from, bytes);
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  barrier->bytes_and_phase -= int(bytes) * 2;
  mbarrier_complete(barrier);
}
}  // namespace emu
