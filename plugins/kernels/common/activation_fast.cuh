// What a linear may apply to its sum, in fp32, by approximate instructions: far more precise than the 16 bits that are
// left of the result. activation_exact.cuh has the same by libdevice.
#pragma once

#include "../ptx/math.cuh"

namespace svdq {

struct Fast {
    static constexpr float kLog2E = 1.4426950408889634f;

    // erfc(z) for z >= 0, relative error below 2e-7 plus that of exp: Chebyshev fit of Numerical Recipes' erfcc.
    static __device__ __forceinline__ float erfc_positive(float z) {
        const float t = ptx::rcp_approx(fmaf(0.5f, z, 1.f));
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
        return t * ptx::exp2_approx(kLog2E * fmaf(-z, z, p));
    }

    // v * Phi(v) through erfc of |v|: no cancellation in the negative tail.
    static __device__ __forceinline__ float gelu(float v) {
        const float tail = 0.5f * v * erfc_positive(fabsf(v) * 0.70710678118654752f);
        return v >= 0.f ? v - tail : tail;
    }

    // 0.5 v (1 + tanh u), u = sqrt(2 / pi) (v + 0.044715 v^3). One MUFU where exp and rcp would be two. Its error is
    // below 2.5e-4 of v: 70 dB under outputs of normal inputs at worst, where bf16 rounds at 55 dB.
    static __device__ __forceinline__ float gelu_tanh(float v) {
        constexpr float kScale = 0.7978845608028654f;
        const float half = 0.5f * v;
        return fmaf(half, ptx::tanh_approx(v * fmaf(0.044715f * kScale, v * v, kScale)), half);
    }

    static __device__ __forceinline__ float silu(float v) {
        return v * ptx::rcp_approx(1.f + ptx::exp2_approx(-kLog2E * v));
    }
};

}  // namespace svdq
