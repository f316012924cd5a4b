// w4a8: s8 activations, one scale per token, times s8(z . q), q the s4 weight and z in 1..18 its group's
// integer multiplier. The sum over all of K is exact in s32; scales are applied once, at the end.
//
// One 32-bit word of qweight (8 codes) becomes two of s8 (common/s4.cuh): even codes, odd codes. quantize has put the
// activations in that order (a8_position).
#pragma once

#include "../common/s4.cuh"
#include "../ptx/mma.cuh"
#include "tile.cuh"

namespace svdq::portable {

struct W4A8 {
    static constexpr int kARowBytes = 64, kAScaleBytes = 0, kBScaleBytes = 1, kStages = 4, kMinCtas = 2;
    static constexpr bool kRowScale = true;
    using Acc = int;

    static __device__ __forceinline__ int a_scale_offset(int lane) { return 0 * lane; }
    static __device__ __forceinline__ int b_scale_offset(int lane) { return lane / 4; }  // row g of the fragment

    template <int kMt, int kNt>
    static __device__ __forceinline__ void step(int (&acc)[kMt][kNt][4], const WarpStage& s) {
        uint32_t b[kNt][2][2];  // [n8 tile][half of the 64][b0, b1]
#pragma unroll
        for (int pair = 0; pair < kNt / 2; ++pair) {
            uint32_t w[4];
            load_b(w, s.b + pair * 16 * 32, s.lane);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int nt = 2 * pair + i / 2;
                const uint32_t z = ptx::load_shared_1(s.b_scale + 8 * nt);
                const uint32_t offset = zq_offset(z);
                b[nt][i % 2][0] = zq_bytes(w[i], z, offset);
                b[nt][i % 2][1] = zq_bytes(w[i] >> 4, z, offset);
            }
        }
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t a[4];
                load_a<4>(a, s.a + mt * 16 * kARowBytes, 2 * half, s.lane);
#pragma unroll
                for (int nt = 0; nt < kNt; ++nt) ptx::mma_s8_s8(acc[mt][nt], a, b[nt][half][0], b[nt][half][1]);
            }
    }
};

}  // namespace svdq::portable
