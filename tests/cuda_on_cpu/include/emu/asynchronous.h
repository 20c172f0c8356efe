// cp.async, bulk copies and mbarriers: what ptx.cuh's CPU branches call.
#pragma once

namespace emu {
// The bytes arrive only when the thread waits for their group; until then the destination is NaN. Past from_bytes comes zero.
inline void cp_async(void* to, const void* from, unsigned bytes, unsigned from_bytes) {
  if ((uintptr_t(to) | uintptr_t(from_bytes ? from : to)) % bytes) fail("cp.async: address not %u-byte aligned", bytes);
  writes(to, bytes);
  memset(to, POISON, bytes);
  self->copies.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, from_bytes, self->group});
}
inline void cp_async_commit() { self->group++; }
inline void cp_async_wait(int groups_left) {
  size_t kept = 0;
  for (auto& copy : self->copies) {
    if (copy.group >= self->group - groups_left) {
      self->copies[kept++] = copy;
      continue;
    }
    writes(copy.to, copy.bytes);
    memcpy(copy.to, copy.from, copy.from_bytes);
    memset(copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
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
inline void mbarrier_wait(uint64_t* at, int phase) {
  auto* barrier = reinterpret_cast<MBarrier*>(at);
  for (long turns = 0; (barrier->bytes_and_phase & 1) == phase; turns++) {
    if (turns > 1000000) fail("mbarrier: never completes");
    next_fiber();
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
