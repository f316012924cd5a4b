// Activation rounding, bit for bit the arithmetic of svdq_trt/ref/quant.py: IEEE fp32, one operation at a time. The
// _rn intrinsics are never contracted into an FMA and ignore -use_fast_math.
#pragma once

#include "types.cuh"

namespace svdq {

constexpr float kZeroGroupAbsmax = 0x1p-120f;  // below: codes 0, scale 1
constexpr float kFp8Max = 448.f;
constexpr uint32_t kFp8Nan = 0x7f;

// The scale of one group, and how to turn its values into codes.
struct GroupScale {
    float scale;    // unrounded
    float inverse;  // 1 / scale
    bool finite;    // no NaN or Inf in the group
    bool live;      // finite and not a zero group: codes may be non-zero
};

// From the largest |bits| of the group's 16-bit values: integer order equals float order, NaN and Inf on top.
template <class T>
__device__ __forceinline__ GroupScale group_scale(uint32_t absmax_bits, float inv_qmax, float max_scale) {
    GroupScale s;
    s.finite = absmax_bits < TypeTraits<T>::kInfBits;
    const float absmax = TypeTraits<T>::to_float(absmax_bits);
    s.live = s.finite && absmax >= kZeroGroupAbsmax;
    s.scale = s.live ? fminf(__fmul_rn(absmax, inv_qmax), max_scale) : 1.f;
    s.inverse = __frcp_rn(s.scale);
    return s;
}

// Integer code: ties to even, saturating.
__device__ __forceinline__ int int_code(float v, const GroupScale& s, int lo, int hi) {
    const int q = __float2int_rn(__fmul_rn(v, s.inverse));
    return s.live ? min(max(q, lo), hi) : 0;
}

// e2m1 code. The steps are 1/2 below 2, 1 below 4 and 2 above; inside each, ties to even are ties to the even code.
__device__ __forceinline__ uint32_t e2m1_code(float v, const GroupScale& s) {
    const float q = __fmul_rn(v, s.inverse);
    const float a = fabsf(q);
    const float per_step = a < 2.f ? 2.f : a < 4.f ? 1.f : 0.5f;
    const int first = a < 2.f ? 0 : a < 4.f ? 2 : 4;
    const int code = a >= 6.f ? 7 : __float2int_rn(__fmul_rn(a, per_step)) + first;
    const uint32_t sign = q < 0.f && code > 0 ? 8u : 0u;
    return s.live ? static_cast<uint32_t>(code) | sign : 0u;
}

// e4m3 byte of a value in [0, 448], ties to even.
__device__ __forceinline__ uint32_t e4m3_byte(float v) {
    if (v < 0x1p-6f) return static_cast<uint32_t>(__float2int_rn(v * 512.f));  // subnormals; 8 = the first normal
    const uint32_t bits = __float_as_uint(v);
    return ((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - (120u << 3);  // exponent bias 127 -> 7
}

// x^ of a pair: one add (if any), one multiply, one rounding.
template <class T>
__device__ __forceinline__ uint32_t smooth_pair(uint32_t x, uint32_t mul, float shift) {
    float lo = low_to_float<T>(x), hi = high_to_float<T>(x);
    if (shift != 0.f) {
        lo = __fadd_rn(lo, shift);
        hi = __fadd_rn(hi, shift);
    }
    lo = __fmul_rn(lo, low_to_float<T>(mul));
    hi = __fmul_rn(hi, high_to_float<T>(mul));
    return TypeTraits<T>::to_bits(lo) | TypeTraits<T>::to_bits(hi) << 16;
}

}  // namespace svdq
