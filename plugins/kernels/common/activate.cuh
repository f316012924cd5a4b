// What a linear applies to its sums, or to the gates among them, in registers.
#pragma once

#include <cuda_runtime_api.h>

#include "svdq/svdq.h"

namespace svdq {

template <int kCount, class F>
__device__ __forceinline__ void apply(float* v, F f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = f(v[i]);
}

// Activates kCount registers in place by Functions: Exact (activation_exact.cuh) or Fast (activation_fast.cuh). One
// branch for all of them: with one per value their chains of MUFU and FMA cannot overlap (a GELU epilogue then took
// longer than its GEMM). 8 at a time fill the pipes; 32 spill.
template <class Functions, int kCount>
__device__ __forceinline__ void activate(float* v, int function) {
    switch (function) {
        case SVDQ_ACT_GELU: return apply<kCount>(v, [](float x) { return Functions::gelu(x); });
        case SVDQ_ACT_GELU_TANH: return apply<kCount>(v, [](float x) { return Functions::gelu_tanh(x); });
        case SVDQ_ACT_SILU: return apply<kCount>(v, [](float x) { return Functions::silu(x); });
        default: return;
    }
}

}  // namespace svdq
