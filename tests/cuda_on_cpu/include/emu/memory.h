// Shared memory: made NaN before each block, so that a read before a write shows; dynamic shared memory of exactly the launch's
// size, ending at a page that may not be touched. Faults of a running kernel become errors.
#pragma once
#include <signal.h>
#include <sys/mman.h>

extern "C" {
// The linker's names for the ends of the section; absent when no kernel of the file has a __shared__ array.
extern char __start_emu_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emu_shared[] __attribute__((weak, visibility("hidden")));
}

namespace emu {
constexpr size_t PAGE = 4096;
constexpr size_t MAX_DYNAMIC_SHARED = 227 << 10;                                  // the most any supported GPU gives one block
constexpr size_t DYNAMIC_REGION = (MAX_DYNAMIC_SHARED + PAGE - 1) / PAGE * PAGE;
constexpr unsigned char POISON = 0xff;                                            // NaN in fp32, fp16, bf16 and e4m3; -1 in integers

inline char* dynamic_region = nullptr;   // [unreadable page][DYNAMIC_REGION][unreadable page]
inline size_t dynamic_bytes = 0;

inline void map_dynamic_shared() {
  if (dynamic_region) return;
  char* mapped = static_cast<char*>(mmap(nullptr, DYNAMIC_REGION + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  dynamic_region = mapped + PAGE;
  mprotect(dynamic_region, DYNAMIC_REGION, PROT_READ | PROT_WRITE);
}
// 128-byte aligned. Between its last byte and the unreadable page lie at most 127 bytes, which are checked after each block.
inline char* dynamic_shared() { return dynamic_region + DYNAMIC_REGION - (dynamic_bytes + 127) / 128 * 128; }
inline void poison_shared() {
  memset(dynamic_region, POISON, DYNAMIC_REGION);
  if (__start_emu_shared) memset(__start_emu_shared, POISON, static_cast<size_t>(__stop_emu_shared - __start_emu_shared));
}
// The first byte outside the launch's dynamic shared memory that was written, relative to its start; LONG_MAX when none was.
inline long stray_write() {
  const char* base = dynamic_shared();
  for (const char* p = dynamic_region; p < dynamic_region + DYNAMIC_REGION; p++)
    if ((p < base || p >= base + dynamic_bytes) && static_cast<unsigned char>(*p) != POISON) return p - base;
  return LONG_MAX;
}
// What is known of 16 bytes of dynamic shared memory: when a cp.async last came there (0: never), by which thread, and how many wgmma under
// way read them.
struct Arrival {
  uint32_t time;
  uint16_t writer, readers;
};
inline Arrival arrivals[DYNAMIC_REGION / 16];
inline uint32_t now = 0;
inline bool in_dynamic_guard(const void* address) {
  const char* p = static_cast<const char*>(address);
  return p >= dynamic_region - PAGE && p < dynamic_region + DYNAMIC_REGION + PAGE;
}
}  // namespace emu
