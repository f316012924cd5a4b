// nvfp4 on sm_120: one mma.sync kind::mxf4nvf4 m16n8k64 per 64 elements, which applies the e4m3 scales of 16 itself.
// Compiled for sm_120a, sm_120f and sm_121a; everywhere else: format_nvfp4.cuh.
#pragma once

#include "../ptx/mma_sm120.cuh"

#if SVDQ_NATIVE_NVFP4

#include "tile.cuh"

namespace svdq::portable {

struct NVFP4 {
    static constexpr int kARowBytes = 32, kAScaleBytes = 4, kBScaleBytes = 4, kStages = 4;
    static constexpr int kMinCtas = 3;  // two on sm_120: min_ctas()
    static constexpr bool kRowScale = false;
    using Acc = float;

    static __device__ __forceinline__ int a_scale_offset(int lane) { return lane / 4 * 8 + lane % 2 * 4; }  // one row
    static __device__ __forceinline__ int b_scale_offset(int lane) { return lane / 4 * 4; }  // row g of the fragment

    template <int kMt, int kNt>
    static __device__ __forceinline__ void step(float (&acc)[kMt][kNt][4], const WarpStage& s) {
        uint32_t w[kNt / 2][4];
#pragma unroll
        for (int pair = 0; pair < kNt / 2; ++pair) load_b(w[pair], s.b + pair * 16 * 32, s.lane);
        uint32_t w_scale[kNt];
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt) w_scale[nt] = ptx::load_shared_4(s.b_scale + 8 * nt * kBScaleBytes);
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
            uint32_t a[4];
            load_a<2>(a, s.a + mt * 16 * kARowBytes, 0, s.lane);
            const uint32_t x_scale = ptx::load_shared_4(s.a_scale + 16 * mt * kAScaleBytes);
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt)
                ptx::mma_nvfp4(acc[mt][nt], a, w[nt / 2][nt % 2 * 2], w[nt / 2][nt % 2 * 2 + 1], x_scale, w_scale[nt]);
        }
    }
};

}  // namespace svdq::portable

#endif  // SVDQ_NATIVE_NVFP4
