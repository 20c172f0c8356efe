// CUDA's keywords, and its vector types with their alignment.
#pragma once
#include <algorithm>
#include <bit>
#include <climits>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
// Blocks run one at a time, so a block's shared array is a static one; the section's name lets memory.h find it.
#define __shared__ static __attribute__((section("emu_shared")))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

#define EMU_VECTOR(T, NAME)                                                           \
  struct alignas(2 * sizeof(T)) NAME##2 { T x, y; };                                  \
  struct NAME##3 { T x, y, z; };                                                      \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) NAME##4 { T x, y, z, w; };  \
  static inline NAME##2 make_##NAME##2(T x, T y) { return {x, y}; }                   \
  static inline NAME##3 make_##NAME##3(T x, T y, T z) { return {x, y, z}; }           \
  static inline NAME##4 make_##NAME##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMU_VECTOR(char, char)
EMU_VECTOR(unsigned char, uchar)
EMU_VECTOR(short, short)
EMU_VECTOR(unsigned short, ushort)
EMU_VECTOR(int, int)
EMU_VECTOR(unsigned, uint)
EMU_VECTOR(long long, longlong)
EMU_VECTOR(unsigned long long, ulonglong)
EMU_VECTOR(float, float)
EMU_VECTOR(double, double)
