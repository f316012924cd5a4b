// x^ in registers -> the row's scale, and codes: what both quantizing kernels share.
//
// A quad of lanes holds a block of 128 columns of a row: lane j has k = 32*q + 8*j .. +7, q = 0..3 (registers 4q ..
// 4q+3), and so owns the contiguous bytes 32j .. 32j+31 of x_q's block (order: w4a8_layout.h).
//
// Numerics: x^ = round(x * act_mul) (one 16-bit multiply rounds the same), s = absmax * f32(1/127), code =
//   rint(x^ * (1/s)), all IEEE fp32. absmax < 2^-120: codes 0, s = 1. NaN or Inf in x^: codes 0, s = NaN.
#pragma once

#include "../common/octet.cuh"
#include "w4a8_layout.h"

namespace svdq::sm90 {

// Running maxima of |x^|, two per register; NaN wins over everything.
template <class T>
__device__ __forceinline__ uint32_t running_max(uint32_t top, const uint32_t (&xh)[16]) {
#pragma unroll
    for (int e = 0; e < 16; ++e) top = max_abs_pairs<T>(top, xh[e]);
    return top;
}

// The larger of the two as a 16-bit pattern; patterns order like magnitudes, NaN above Inf.
__device__ __forceinline__ uint32_t max_pattern(uint32_t top) { return max(top & 0x7fffu, top >> 16 & 0x7fffu); }

struct RowScale {
    float stored, inverse;  // s, 1/s of the codes
    uint32_t keep;          // 0 where every code is 0
};

template <class T>
__device__ __forceinline__ RowScale row_scale(uint32_t pattern) {
    const bool finite = pattern < Act16<T>::kInfBits;
    const float absmax = Act16<T>::to_float(pattern);
    const float scale = finite && absmax >= kZeroGroupAbsmax ? absmax * (1.f / 127.f) : 1.f;
    return {finite ? scale : __int_as_float(0x7fc00000), __frcp_rn(scale), finite ? 0xffffffffu : 0u};
}

// The low bytes of four words, packed.
__device__ __forceinline__ uint32_t low_bytes(const uint32_t (&c)[4]) {
    return __byte_perm(__byte_perm(c[0], c[1], 0x0040), __byte_perm(c[2], c[3], 0x0040), 0x5410);
}

// The lane's 32 codes, even k first, then odd k (w4a8_layout.h), to bytes 32j .. 32j+31 of `block` (a row of
// x_q's block) if `valid`. Neighbouring lanes swap halves first, so that each store fills whole 32-byte
// sectors. All lanes of the warp call this.
template <class T>
__device__ __forceinline__ void store_codes(uint8_t* block, bool valid, const uint32_t (&xh)[16], const RowScale& s) {
    uint32_t even[4], odd[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        uint32_t lo[4], hi[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            // Adding kMagic leaves the code in the low byte.
            const uint32_t v = xh[4 * q + e];
            lo[e] = __float_as_uint(__fadd_rn(__fmul_rn(low_to_float<T>(v), s.inverse), kMagic));
            hi[e] = __float_as_uint(__fadd_rn(__fmul_rn(high_to_float<T>(v), s.inverse), kMagic));
        }
        even[q] = low_bytes(lo) & s.keep;
        odd[q] = low_bytes(hi) & s.keep;
    }
    const int j = static_cast<int>(threadIdx.x) % 4;
    const bool upper = j & 1;  // keeps `odd`; its partner keeps `even`
    uint32_t first[4], second[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const uint32_t swapped = __shfl_xor_sync(0xffffffffu, upper ? even[q] : odd[q], 1);
        first[q] = upper ? swapped : even[q];
        second[q] = upper ? odd[q] : swapped;
    }
    if (valid) {
        uint4* dst = reinterpret_cast<uint4*>(block + 32 * (j & 2) + 16 * (j & 1));
        dst[0] = make_uint4(first[0], first[1], first[2], first[3]);
        dst[2] = make_uint4(second[0], second[1], second[2], second[3]);
    }
}

}  // namespace svdq::sm90
