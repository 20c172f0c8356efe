// Every PTX instruction that quire's kernels use, behind a function: the instruction for the GPU, a model of it for the CPU tests.
#pragma once
#include <cuda_fp16.h>

#ifndef CUDA_ON_CPU
__device__ __forceinline__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
#endif

// ---------------------------------------------------------------- tensor cores (sm_80)
// d += a * b in fp32: a 16x16 row-major, b 16x8 column-major. Lane 4g+t holds of a rows g and g+8, columns 2t.. and 2t+8..
__device__ __forceinline__ void mma_bf16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifdef CUDA_ON_CPU
  const unsigned b[2] = {b0, b1};
  emu::mma_m16n8k16<true>(d, a, b);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}
__device__ __forceinline__ void mma_fp16(float (&d)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#ifdef CUDA_ON_CPU
  const unsigned b[2] = {b0, b1};
  emu::mma_m16n8k16<false>(d, a, b);
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8x8 matrices of 16-bit numbers; lane 8m+r gives the address of row r of matrix m. `volatile` and "memory" keep them after the barrier.
__device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void* row) {
#ifdef CUDA_ON_CPU
  emu::ldmatrix<4, false>(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
#ifdef CUDA_ON_CPU
  emu::ldmatrix<4, true>(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
#endif
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void* row) {
#ifdef CUDA_ON_CPU
  emu::ldmatrix<2, true>(r, row);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
#endif
}
// An 8x8 matrix in registers, transposed: lane 4g+t gives and gets the neighbours 2t, 2t+1 of row g.
__device__ __forceinline__ unsigned movmatrix_trans(unsigned v) {
#ifdef CUDA_ON_CPU
  return emu::movmatrix_trans(v);
#else
  unsigned r;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0,%1;" : "=r"(r) : "r"(v));
  return r;
#endif
}

// ---------------------------------------------------------------- asynchronous copies (sm_80)
// 16 bytes global to shared past the L1 cache; zeros when `valid` is false (`from` is then not read, yet must be a valid address).
__device__ __forceinline__ void cp_async16(void* to, const void* from, bool valid) {
#ifdef CUDA_ON_CPU
  emu::cp_async(to, from, 16, valid ? 16 : 0);
#else
  asm volatile("cp.async.cg.shared.global.L2::128B [%0],[%1],16,%2;" ::"r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
#endif
}
__device__ __forceinline__ void cp_async_commit() {
#ifdef CUDA_ON_CPU
  emu::cp_async_commit();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Wait until at most N of this thread's newest groups are under way. Other threads' copies need a barrier after it.
template <int N> __device__ __forceinline__ void cp_async_wait() {
#ifdef CUDA_ON_CPU
  emu::cp_async_wait(N);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// ---------------------------------------------------------------- bulk copies and mbarriers (sm_90)
typedef unsigned long long mbarrier_t;
__device__ __forceinline__ void mbarrier_init(mbarrier_t* b, int arrivals) {
#ifdef CUDA_ON_CPU
  emu::mbarrier_init(reinterpret_cast<uint64_t*>(b), arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0],%1; fence.mbarrier_init.release.cluster;" ::"r"(shared_address(b)), "r"(arrivals) : "memory");
#endif
}
__device__ __forceinline__ void mbarrier_arrive_expect(mbarrier_t* b, int bytes) {
#ifdef CUDA_ON_CPU
  emu::mbarrier_arrive(reinterpret_cast<uint64_t*>(b), bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _,[%0],%1;" ::"r"(shared_address(b)), "r"(bytes) : "memory");
#endif
}
__device__ __forceinline__ void mbarrier_wait(mbarrier_t* b, int phase) {
#ifdef CUDA_ON_CPU
  emu::mbarrier_wait(reinterpret_cast<uint64_t*>(b), phase);
#else
  asm volatile("{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p,[%0],%1; @p bra D; bra W; D: }" ::"r"(shared_address(b)), "r"(phase) : "memory");
#endif
}
__device__ __forceinline__ void bulk_copy(void* to, const void* from, unsigned bytes, mbarrier_t* b) {
#ifdef CUDA_ON_CPU
  emu::bulk_copy(to, from, bytes, reinterpret_cast<uint64_t*>(b));
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0],[%1],%2,[%3];" ::"r"(shared_address(to)), "l"(from),
               "r"(bytes), "r"(shared_address(b)) : "memory");
#endif
}

// ---------------------------------------------------------------- arithmetic
// 2^x, relative error about 2^-22; minus infinity gives 0.
__device__ __forceinline__ float ex2(float x) {
#ifdef CUDA_ON_CPU
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
// Two e4m3 numbers (low byte first) as fp16, exactly. Before sm_89 the bits are put in place and the exponents' bias is multiplied away;
// NaN then becomes 480.
__device__ __forceinline__ unsigned e4m3x2_to_fp16x2(unsigned pair) {
#ifdef CUDA_ON_CPU
  return unsigned(emu::to_fp16(emu::from_e4m3(pair & 0xff))) | unsigned(emu::to_fp16(emu::from_e4m3(pair >> 8 & 0xff))) << 16;
#elif __CUDA_ARCH__ >= 890
  unsigned r;
  asm("cvt.rn.f16x2.e4m3x2 %0,%1;" : "=r"(r) : "h"(static_cast<unsigned short>(pair)));
  return r;
#else
  unsigned spread = (pair & 0xffu) | (pair & 0xff00u) << 8;
  unsigned bits = (spread & 0x00800080u) << 8 | (spread & 0x007f007fu) << 7;
  __half2 v = __hmul2(*reinterpret_cast<__half2*>(&bits), __floats2half2_rn(256.f, 256.f));
  return *reinterpret_cast<unsigned*>(&v);
#endif
}
// One float as e4m3 without the instruction: adding and taking away 1.5 * 2^23 units in the last place rounds to nearest even.
__device__ __forceinline__ unsigned e4m3_by_rounding(float x) {
  const float a = fminf(fabsf(x), 448.f);
  const unsigned sign = (__float_as_uint(x) >> 24) & 0x80u;
  if (x != x) return 0x7fu;
  const int exponent = max(static_cast<int>(__float_as_uint(a) >> 23) - 127, -6);       // of the e4m3 number; -6 also for subnormal ones
  const float magic = __uint_as_float(static_cast<unsigned>(exponent - 3 + 23 + 127) << 23) * 1.5f;
  const float rounded = __fadd_rn(__fadd_rn(a, magic), -magic);
  // Scaled so that e4m3's bias becomes fp32's: then exponent and mantissa bits stand next to each other. A carry has moved the exponent along.
  const unsigned bits = rounded < 0.015625f ? static_cast<unsigned>(rounded * 512.f) : (__float_as_uint(rounded) >> 20) - ((127u - 7u) << 3);
  return sign | bits;
}
// Two floats as e4m3, the first in the low byte; saturates at 448.
__device__ __forceinline__ unsigned floats_to_e4m3x2(float a, float b) {
#ifdef CUDA_ON_CPU
  return unsigned(emu::to_e4m3(a)) | unsigned(emu::to_e4m3(b)) << 8;
#elif __CUDA_ARCH__ >= 890
  unsigned short r;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0,%1,%2;" : "=h"(r) : "f"(b), "f"(a));
  return r;
#else
  return e4m3_by_rounding(a) | e4m3_by_rounding(b) << 8;
#endif
}
