// Epilogue arithmetic in fp32, and the one rounding to the output dtype.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "svdq/svdq.h"

namespace svdq::sm90 {

// Which code a kernel is compiled with: none, any one-input activation (chosen at run time), or the gated
// pair.
enum class ActClass { kNone, kUnary, kGeglu };

__device__ __forceinline__ float fast_exp2(float v) {  // 0 below 2^-126
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}
__device__ __forceinline__ float fast_rcp(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

constexpr float kLog2E = 1.4426950408889634f;

// erfc(z) for z >= 0, relative error below 2e-7 plus that of exp: Chebyshev fit of Numerical Recipes' erfcc.
__device__ __forceinline__ float erfc_positive(float z) {
    const float t = fast_rcp(fmaf(0.5f, z, 1.0f));
    float p = 0.17087277f;
    p = fmaf(p, t, -0.82215223f);
    p = fmaf(p, t, 1.48851587f);
    p = fmaf(p, t, -1.13520398f);
    p = fmaf(p, t, 0.27886807f);
    p = fmaf(p, t, -0.18628806f);
    p = fmaf(p, t, 0.09678418f);
    p = fmaf(p, t, 0.37409196f);
    p = fmaf(p, t, 1.00002368f);
    p = fmaf(p, t, -1.26551223f);
    return t * fast_exp2(kLog2E * fmaf(-z, z, p));
}

// v * Phi(v) through erfc of |v|: no cancellation in the negative tail.
__device__ __forceinline__ float gelu_erf(float v) {
    const float tail = 0.5f * v * erfc_positive(fabsf(v) * 0.70710678118654752f);
    return v >= 0.0f ? v - tail : tail;
}

__device__ __forceinline__ float fast_tanh(float v) {  // relative error below 2^-11
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

// 0.5 v (1 + tanh u), u = sqrt(2 / pi) (v + 0.044715 v^3). One MUFU where exp and rcp would be two. Its error is
// below 2.5e-4 of v: 70 dB under outputs of normal inputs at worst, where bf16 rounds at 55 dB.
__device__ __forceinline__ float gelu_tanh(float v) {
    constexpr float kScale = 0.7978845608028654f;
    const float half = 0.5f * v;
    return fmaf(half, fast_tanh(v * fmaf(0.044715f * kScale, v * v, kScale)), half);
}

__device__ __forceinline__ float silu(float v) { return v * fast_rcp(1.0f + fast_exp2(-kLog2E * v)); }

template <int kCount, typename F>
__device__ __forceinline__ void apply(float* v, F f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = f(v[i]);
}

// Activates kCount registers in place. One branch for all of them: with one per value their chains of MUFU and
// FMA cannot overlap (a GELU epilogue then took longer than its GEMM). 8 at a time fill the pipes; 32 spill.
template <int kCount>
__device__ __forceinline__ void activate(float* v, int activation) {
    switch (activation) {
        case SVDQ_ACT_GELU:
            return apply<kCount>(v, [](float x) { return gelu_erf(x); });
        case SVDQ_ACT_GELU_TANH:
            return apply<kCount>(v, [](float x) { return gelu_tanh(x); });
        case SVDQ_ACT_SILU:
            return apply<kCount>(v, [](float x) { return silu(x); });
        default:
            return;
    }
}

template <typename T>
struct Act16;

template <>
struct Act16<__half> {
    using Pair = __half2;
    static constexpr uint32_t kInf = 0x7c00;
    static __device__ __forceinline__ float to_float(uint16_t bits) {
        return __half2float(__ushort_as_half(bits));
    }
    // Rounds two values, low half first; saturates at +-65504, NaN stays NaN.
    static __device__ __forceinline__ uint32_t pack(float lo, float hi) {
        __half2 v = __floats2half2_rn(lo, hi);
        v = __hmin2_nan(v, __float2half2_rn(65504.0f));
        v = __hmax2_nan(v, __float2half2_rn(-65504.0f));
        return *reinterpret_cast<uint32_t*>(&v);
    }
    // Rounds without saturation: Inf stays Inf (t of a row that is NaN anyway, or an honest overflow).
    static __device__ __forceinline__ uint32_t pack_wide(float lo, float hi) {
        const __half2 v = __floats2half2_rn(lo, hi);
        return *reinterpret_cast<const uint32_t*>(&v);
    }
    static __device__ __forceinline__ float2 unpack(uint32_t bits) {
        return __half22float2(*reinterpret_cast<const __half2*>(&bits));
    }
    static __device__ __forceinline__ uint32_t mul(uint32_t a, uint32_t b) {
        const __half2 v =
            __hmul2_rn(*reinterpret_cast<const __half2*>(&a), *reinterpret_cast<const __half2*>(&b));
        return *reinterpret_cast<const uint32_t*>(&v);
    }
    // Larger of `top` and |b| in each half; NaN wins. (With max.NaN.xorsign.abs an H200 gave too small a
    // maximum in some rows.)
    static __device__ __forceinline__ uint32_t max_abs(uint32_t top, uint32_t b) {
        const __half2 v = __hmax2_nan(*reinterpret_cast<const __half2*>(&top),
                                      __habs2(*reinterpret_cast<const __half2*>(&b)));
        return *reinterpret_cast<const uint32_t*>(&v);
    }
    // d[16][8] += a[16][16] * b[8][16]^T, one warp; registers of a: (row, k) = (g, 2t), (g+8, 2t), (g, 2t+8),
    // (g+8, 2t+8).
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

template <>
struct Act16<__nv_bfloat16> {
    using Pair = __nv_bfloat162;
    static constexpr uint32_t kInf = 0x7f80;
    static __device__ __forceinline__ float to_float(uint16_t bits) {
        return __uint_as_float(uint32_t(bits) << 16);
    }
    static __device__ __forceinline__ uint32_t pack(float lo, float hi) {
        const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
        return *reinterpret_cast<const uint32_t*>(&v);
    }
    static __device__ __forceinline__ uint32_t pack_wide(float lo, float hi) { return pack(lo, hi); }
    static __device__ __forceinline__ float2 unpack(uint32_t bits) {
        return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
    }
    static __device__ __forceinline__ uint32_t mul(uint32_t a, uint32_t b) {
        const __nv_bfloat162 v = __hmul2_rn(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                            *reinterpret_cast<const __nv_bfloat162*>(&b));
        return *reinterpret_cast<const uint32_t*>(&v);
    }
    static __device__ __forceinline__ uint32_t max_abs(uint32_t top, uint32_t b) {
        const __nv_bfloat162 v = __hmax2_nan(*reinterpret_cast<const __nv_bfloat162*>(&top),
                                             __habs2(*reinterpret_cast<const __nv_bfloat162*>(&b)));
        return *reinterpret_cast<const uint32_t*>(&v);
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
};

}  // namespace svdq::sm90
