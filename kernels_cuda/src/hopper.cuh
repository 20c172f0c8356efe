// PTX of Hopper (sm_90a) as ptx.cuh does it: products of a warpgroup (wgmma), the fences they need, and registers moved between warpgroups.
//
// Layouts and rules: the PTX manual, "Asynchronous Warpgroup Level Matrix Instructions"; CUTLASS (cute/arch/mma_sm90_desc.hpp and
// cute/atom/mma_traits_sm90_gmma.hpp) names the fields of a descriptor and the canonical layouts.
#pragma once
#include "ptx.cuh"

// ---------------------------------------------------------------- operands in shared memory
// Rows of 128 bytes, eight of which, 1024 bytes at a multiple of 1024, are one pattern: the 16-byte piece p of row r stands at place
// p ^ (r & 7). So eight rows of a piece lie in different banks.
#define SWIZZLED_ROW 128
__device__ __forceinline__ unsigned swizzled(unsigned row, unsigned piece) { return row * SWIZZLED_ROW + ((piece ^ (row & 7)) << 4); }

// What wgmma takes for an operand in rows of 128 bytes. stride: bytes between patterns of eight rows. leading: where the rows run along K
// (the keys of Q K^T) it is not used, since 16 numbers lie within a row; where they run along N (the values of P V), bytes from 64 columns
// to the next 64. A step of 16 along K is 32 bytes further in the first case, two patterns in the second: advance() by so much.
__device__ __forceinline__ unsigned long long matrix_descriptor(const void* start, unsigned leading, unsigned stride) {
#ifdef CUDA_ON_CPU
  const unsigned address = emu::shared_address(start);
#else
  const unsigned address = shared_address(start);
#endif
  const unsigned low = (address & 0x3ffffu) >> 4 | leading >> 4 << 16, high = stride >> 4 | 1u << 30;   // bits 62-63: swizzle of 128 bytes
  return static_cast<unsigned long long>(high) << 32 | low;
}
__device__ __forceinline__ unsigned long long advance(unsigned long long descriptor, unsigned bytes) { return descriptor + (bytes >> 4); }

// ---------------------------------------------------------------- order
// Registers that were written are there for the wgmma that follow. Needed before the first one, and whenever registers were touched.
__device__ __forceinline__ void wgmma_fence() {
#ifdef CUDA_ON_CPU
  emu::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void wgmma_commit() {
#ifdef CUDA_ON_CPU
  emu::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Wait until at most N of the warpgroup's newest groups are under way. Call settle() for the accumulators that are read after it.
template <int N> __device__ __forceinline__ void wgmma_wait() {
#ifdef CUDA_ON_CPU
  emu::wgmma_wait(N);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}
// The compiler takes an accumulator for written when wgmma is issued; this keeps what uses it behind the wait.
template <int N> __device__ __forceinline__ void settle(float (&d)[N][4]) {
#ifndef CUDA_ON_CPU
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])::"memory");
#endif
}
// What this thread has written or seen written in shared memory is there for the asynchronous proxy, by which wgmma reads.
__device__ __forceinline__ void fence_proxy_async() {
#ifdef CUDA_ON_CPU
  emu::fence_proxy_async();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
__device__ __forceinline__ void mbarrier_arrive(mbarrier_t* b) {
#ifdef CUDA_ON_CPU
  emu::mbarrier_arrive(reinterpret_cast<uint64_t*>(b), 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _,[%0];" ::"r"(shared_address(b)) : "memory");
#endif
}
// This thread arrives when all cp.async that it has issued so far have come.
__device__ __forceinline__ void cp_async_mbarrier_arrive(mbarrier_t* b) {
#ifdef CUDA_ON_CPU
  emu::cp_async_mbarrier_arrive(reinterpret_cast<uint64_t*>(b));
#else
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(b)) : "memory");
#endif
}
// Registers per thread of this warpgroup from here on; every warp of it must call this.
template <int REGISTERS> __device__ __forceinline__ void keep_registers() {
#ifdef CUDA_ON_CPU
  emu::setmaxnreg(REGISTERS, false);
#else
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}
template <int REGISTERS> __device__ __forceinline__ void take_registers() {
#ifdef CUDA_ON_CPU
  emu::setmaxnreg(REGISTERS, true);
#else
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// ---------------------------------------------------------------- products
// d = a * b, plus d if `accumulate`, in fp32; a 64x16, b 16xN with N = 8 * the length of d. Warp w of the warpgroup holds rows 16 w .., its
// lane 4g+t rows g and g + 8, of every 8 columns 2t and 2t + 1: d[n] as in ptx.cuh's mma.
// wgmma_keys: a and b from shared memory, rows along K in both. wgmma_values: a from registers as in ptx.cuh's mma, b from shared memory
// with rows along N.
#define WGMMA_4(d, i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define WGMMA_16(d, i) WGMMA_4(d, i), WGMMA_4(d, i + 1), WGMMA_4(d, i + 2), WGMMA_4(d, i + 3)
#define WGMMA_32(d, i) WGMMA_16(d, i), WGMMA_16(d, i + 4)
#define WGMMA_64(d) WGMMA_32(d, 0), WGMMA_32(d, 8)
#define WGMMA_0_31                                                                                                            \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WGMMA_32_63                                                                                                              \
  "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62," \
  "%63"
#if defined(DTYPE_FP16)
#define WGMMA_TYPES ".f32.f16.f16"
#else
#define WGMMA_TYPES ".f32.bf16.bf16"
#endif
#define WGMMA_BF16 (WGMMA_TYPES[5] == 'b')

__device__ __forceinline__ void wgmma_keys(float (&d)[16][4], unsigned long long a, unsigned long long b, bool accumulate) {
#ifdef CUDA_ON_CPU
  emu::wgmma<WGMMA_BF16, 128>(d[0], nullptr, a, b, false, accumulate);
#else
  asm volatile("{ .reg .pred p; setp.ne.b32 p,%66,0; wgmma.mma_async.sync.aligned.m64n128k16" WGMMA_TYPES
               " {" WGMMA_0_31 "," WGMMA_32_63 "},%64,%65,p,1,1,0,0; }"
               : WGMMA_64(d) : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
#endif
}
__device__ __forceinline__ void wgmma_values(float (&d)[8][4], const unsigned (&a)[4], unsigned long long b, bool accumulate) {
#ifdef CUDA_ON_CPU
  emu::wgmma<WGMMA_BF16, 64>(d[0], a, 0, b, true, accumulate);
#else
  asm volatile("{ .reg .pred p; setp.ne.b32 p,%37,0; wgmma.mma_async.sync.aligned.m64n64k16" WGMMA_TYPES
               " {" WGMMA_0_31 "},{%32,%33,%34,%35},%36,p,1,1,1; }"
               : WGMMA_32(d, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
#endif
}
__device__ __forceinline__ void wgmma_values(float (&d)[16][4], const unsigned (&a)[4], unsigned long long b, bool accumulate) {
#ifdef CUDA_ON_CPU
  emu::wgmma<WGMMA_BF16, 128>(d[0], a, 0, b, true, accumulate);
#else
  asm volatile("{ .reg .pred p; setp.ne.b32 p,%69,0; wgmma.mma_async.sync.aligned.m64n128k16" WGMMA_TYPES
               " {" WGMMA_0_31 "," WGMMA_32_63 "},{%64,%65,%66,%67},%68,p,1,1,1; }"
               : WGMMA_64(d) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));
#endif
}
