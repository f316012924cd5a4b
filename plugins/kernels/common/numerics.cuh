// Activation rounding, bit for bit the arithmetic of svdq_trt/contract/reference/quant.py: IEEE fp32, one operation at a
// time. The _rn intrinsics are never contracted into an FMA and ignore -use_fast_math.
#pragma once

#include "types.cuh"

namespace svdq {

constexpr float kZeroGroupAbsmax = 0x1p-120f;  // below: codes 0, scale 1
constexpr float kFp8Max = 448.f;
constexpr uint32_t kFp8Nan = 0x7f;

// 1.5 . 2^23: a float near it has units of 1, so that adding it rounds to an integer, ties to even, and leaves that in
// the low bits; an integer that is added to the bits adds to the float.
constexpr float kMagic = 12582912.f;
constexpr uint32_t kMagicBits = 0x4b400000u;

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
    s.finite = absmax_bits < Act16<T>::kInfBits;
    const float absmax = Act16<T>::to_float(absmax_bits);
    s.live = s.finite && absmax >= kZeroGroupAbsmax;
    s.scale = s.live ? fminf(__fmul_rn(absmax, inv_qmax), max_scale) : 1.f;
    s.inverse = __frcp_rn(s.scale);
    return s;
}

// Integer codes, kCount of kBits each, packed lowest first; value(i) gives element i. Ties to even.
//
// Adding kMagic + bias rounds v / s to an integer and leaves it, plus the bias, in the low bits of the
// sum. The bias (8 or 128) makes every code positive, so that codes add up shifted without borrows; flipping
// each top bit removes it. No saturation is needed: |v| <= absmax, so |v / s| <= qmax (1 + 2^-21), which
// rounds to qmax; kUnsigned clips below.
template <int kCount, int kBits, bool kUnsigned, class Value>
__device__ __forceinline__ uint32_t int_codes(const GroupScale& s, Value value) {
    constexpr uint32_t kOnes = kBits == 4 ? 0x11111111u : 0x01010101u;
    constexpr uint32_t kBias = kUnsigned ? 0u : 1u << (kBits - 1);
    constexpr float kBiased = kMagic + static_cast<float>(kBias);
    static_assert(kCount * kBits == 32, "one word");
    uint32_t word = 0u - kMagicBits * kOnes;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        float q = __fmul_rn(value(i), s.inverse);
        if (kUnsigned) q = fmaxf(q, 0.f);
        word += __float_as_uint(__fadd_rn(q, kBiased)) << (kBits * i);
    }
    return s.live ? word ^ (kBias * kOnes) : 0u;
}

// e2m1 code. From 1 up the code is the float's own exponent and first mantissa bit, rounded there, ties to
// even; below 1 the steps are 1/2, which adding 1.5 . 2^22 rounds to.
__device__ __forceinline__ uint32_t e2m1_code(float v, const GroupScale& s) {
    const uint32_t bits = __float_as_uint(__fmul_rn(v, s.inverse));
    const uint32_t a = bits & 0x7fffffffu;
    const uint32_t normal = ((a + 0x1fffffu + (a >> 22 & 1u)) >> 22) - (126u << 1);
    const uint32_t small = __float_as_uint(__fadd_rn(__uint_as_float(a), 6291456.f)) - 0x4ac00000u;
    const uint32_t code = min(a < 0x3f800000u ? small : normal, 7u);
    return code == 0 ? 0u : code | (bits >> 28 & 8u);
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
    return Act16<T>::to_pair(lo, hi);
}

}  // namespace svdq
