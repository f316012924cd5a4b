// w4a16: 16-bit activations times s4 weights in groups of 64.
//
// The weights enter the MMA as the exact integers -8..7 in the act dtype; a group is four m16n8k16 into a
// fresh fp32 accumulator, which is then multiplied by the group's scale: no rounding of q . scale to 16 bit.
//
// Codes j and j + 4 of a word become a pair (common/s4.cuh); quantize has put the activations in that order
// (a16_position).
#pragma once

#include "../common/s4.cuh"
#include "../ptx/mma.cuh"
#include "tile.cuh"

namespace svdq::portable {

template <class T>
struct W4A16 {
    static constexpr int kARowBytes = 128, kAScaleBytes = 0, kBScaleBytes = 2, kStages = 4, kMinCtas = 1;
    static constexpr bool kRowScale = true;
    using Acc = float;

    static __device__ __forceinline__ int a_scale_offset(int lane) { return 0 * lane; }
    static __device__ __forceinline__ int b_scale_offset(int lane) { return lane % 4 * 4; }  // columns 2c, 2c + 1

    template <int kMt, int kNt>
    static __device__ __forceinline__ void step(float (&acc)[kMt][kNt][4], const WarpStage& s) {
        uint32_t b[kNt][4][2];  // [n8 tile][k16 step][b0, b1]
        float w_scale[kNt][2];
#pragma unroll
        for (int pair = 0; pair < kNt / 2; ++pair) {
            uint32_t w[4];
            load_b(w, s.b + pair * 16 * 32, s.lane);
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) b[2 * pair + i / 2][2 * (i % 2) + j / 2][j % 2] = s4_pair<T>(w[i], j);
        }
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt) {
            const uint32_t two = ptx::load_shared_4(s.b_scale + 8 * nt * kBScaleBytes);
            w_scale[nt][0] = low_to_float<T>(two);
            w_scale[nt][1] = high_to_float<T>(two);
        }
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
            uint32_t a[4][4];
#pragma unroll
            for (int k = 0; k < 4; ++k) load_a<8>(a[k], s.a + mt * 16 * kARowBytes, 2 * k, s.lane);
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) {
                float d[4] = {};
#pragma unroll
                for (int k = 0; k < 4; ++k) ptx::mma_16bit(T(), d, a[k], b[nt][k][0], b[nt][k][1]);
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[mt][nt][i] = fmaf(d[i], w_scale[nt][i % 2], acc[mt][nt][i]);
            }
        }
    }
};

}  // namespace svdq::portable
