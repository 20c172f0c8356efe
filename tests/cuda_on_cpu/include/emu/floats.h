// half, bfloat16 and e4m3 with CUDA's names. Conversions round to nearest even, as the GPU's do.
#pragma once

namespace emu {
inline float from_bf16(uint16_t bits) { return std::bit_cast<float>(uint32_t(bits) << 16); }
inline uint16_t to_bf16(float f) {
  uint32_t u = std::bit_cast<uint32_t>(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float from_fp16(uint16_t bits) { return float(std::bit_cast<_Float16>(bits)); }
inline uint16_t to_fp16(float f) { return std::bit_cast<uint16_t>(static_cast<_Float16>(f)); }
inline float from_e4m3(uint8_t bits) {
  int exponent = bits >> 3 & 15, mantissa = bits & 7;
  float v = exponent == 15 && mantissa == 7 ? NAN : exponent ? ldexpf(1 + mantissa / 8.f, exponent - 7) : ldexpf(mantissa / 8.f, -6);
  return bits >> 7 ? -v : v;
}
inline uint8_t to_e4m3(float f) {   // saturates at 448
  if (f != f) return 0x7f;
  uint8_t sign = std::signbit(f) ? 0x80 : 0;
  float a = fabsf(f);
  if (a >= 448) return sign | 0x7e;
  int exponent;
  frexpf(a, &exponent);
  exponent = std::max(exponent - 1, -6);
  int q = int(nearbyintf(ldexpf(a, 3 - exponent)));   // 8 .. 16 for normal numbers, fewer for subnormal ones
  if (a == 0) return sign;
  if (q == 16) {
    q = 8;
    exponent++;
  }
  if (q < 8) return sign | uint8_t(q);
  return sign | uint8_t((exponent + 7) << 3 | (q - 8));
}
}  // namespace emu

#define EMU_FLOAT16(T, TO, FROM)                                                                             \
  struct T {                                                                                                 \
    uint16_t bits;                                                                                           \
    T() = default;                                                                                           \
    T(float f) : bits(TO(f)) {}                                                                              \
    operator float() const { return FROM(bits); }                                                            \
  };                                                                                                         \
  struct alignas(4) T##2 { T x, y; };                                                                        \
  static inline T##2 __hadd2(T##2 a, T##2 b) { return {float(a.x) + float(b.x), float(a.y) + float(b.y)}; }   \
  static inline T##2 __hmul2(T##2 a, T##2 b) { return {float(a.x) * float(b.x), float(a.y) * float(b.y)}; }   \
  static inline T __hadd(T a, T b) { return float(a) + float(b); }                                           \
  static inline T __hmul(T a, T b) { return float(a) * float(b); }
EMU_FLOAT16(__half, emu::to_fp16, emu::from_fp16)
EMU_FLOAT16(__nv_bfloat16, emu::to_bf16, emu::from_bf16)
typedef __half half;
typedef __half2 half2;
typedef __nv_bfloat16 nv_bfloat16;
typedef __nv_bfloat162 nv_bfloat162;
static inline __half __float2half_rn(float f) { return f; }
static inline __half __float2half(float f) { return f; }
static inline float __half2float(__half h) { return h; }
static inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }
static inline float2 __half22float2(__half2 h) { return {h.x, h.y}; }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) { return f; }
static inline __nv_bfloat16 __float2bfloat16(float f) { return f; }
static inline float __bfloat162float(__nv_bfloat16 h) { return h; }
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 h) { return {h.x, h.y}; }

typedef unsigned char __nv_fp8_storage_t;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
static inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float f, __nv_saturation_t, __nv_fp8_interpretation_t) { return emu::to_e4m3(f); }
