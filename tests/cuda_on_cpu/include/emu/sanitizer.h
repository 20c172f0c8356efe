// What the fibers tell ThreadSanitizer: which fiber runs, and which events order memory. Without the sanitizer nothing remains of it.
// Each CUDA thread is a TSan fiber, switching between them orders nothing, and only barriers do. So TSan reports just what is a
// race on a GPU: two accesses of one block with no barrier between them.
#pragma once

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
void __tsan_read_range(void*, unsigned long);
void __tsan_write_range(void*, unsigned long);
void __tsan_ignore_thread_begin(void);
void __tsan_ignore_thread_end(void);
}
#define EMU_TSAN(...) __VA_ARGS__
#else
#define EMU_TSAN(...)
#endif

namespace emu {
// All that happened before publish(x) happened before what follows observe(x).
inline void publish([[maybe_unused]] void* at) { EMU_TSAN(__tsan_release(at);) }
inline void observe([[maybe_unused]] void* at) { EMU_TSAN(__tsan_acquire(at);) }
// Accesses that the emulator makes for the running thread, from code that the sanitizer is told to ignore.
inline void reads([[maybe_unused]] const void* at, [[maybe_unused]] unsigned long n) { EMU_TSAN(__tsan_read_range(const_cast<void*>(at), n);) }
inline void writes([[maybe_unused]] void* at, [[maybe_unused]] unsigned long n) { EMU_TSAN(__tsan_write_range(at, n);) }
// Within its scope the sanitizer does not look at what this fiber touches: bookkeeping that fibers share, and work done in the place of copy
// engines and tensor cores, whose accesses are told by the two functions above. Far quicker than a suppression, which is applied to each report.
struct Unseen {
  Unseen() { EMU_TSAN(__tsan_ignore_thread_begin();) }
  ~Unseen() { EMU_TSAN(__tsan_ignore_thread_end();) }
};
}  // namespace emu
