// The activation of a wgmma kernel's sums, in registers.
#pragma once

#include "../common/activation_fast.cuh"
#include "svdq/svdq.h"

namespace svdq::sm90 {

// Which code a kernel is compiled with: none, any one-input activation (chosen at run time), or the gated pair.
enum class ActClass { kNone, kUnary, kGeglu };

template <int kCount, class F>
__device__ __forceinline__ void apply(float* v, F f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = f(v[i]);
}

// Activates kCount registers in place. One branch for all of them: with one per value their chains of MUFU and
// FMA cannot overlap (a GELU epilogue then took longer than its GEMM). 8 at a time fill the pipes; 32 spill.
template <int kCount>
__device__ __forceinline__ void activate(float* v, int activation) {
    switch (activation) {
        case SVDQ_ACT_GELU: return apply<kCount>(v, [](float x) { return fast::gelu(x); });
        case SVDQ_ACT_GELU_TANH: return apply<kCount>(v, [](float x) { return fast::gelu_tanh(x); });
        case SVDQ_ACT_SILU: return apply<kCount>(v, [](float x) { return fast::silu(x); });
        default: return;
    }
}

}  // namespace svdq::sm90
