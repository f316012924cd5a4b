// int4: s4 or u4 activations times s4 weights, both in groups of 64: one m16n8k64 is one group.
//
//   acc += float(sum_k a.b) . (x_scale . w_scale)
//
// The s32 accumulator starts at the bits of kMagic instead of 0: read as a float the result then is 1.5 .
// 2^23 + sum, exact for |sum| < 2^22 (here <= 64 . 15 . 7), and one subtraction replaces a conversion, which
// has a quarter of the rate.
#pragma once

#include "../common/numerics.cuh"
#include "../ptx/mma.cuh"
#include "tile.cuh"

namespace svdq::portable {

// CTAs per SM to allocate registers for. Hopper has no s4 MMA: what the compiler makes instead needs more registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
constexpr int kS4MinCtas = 1;
#else
constexpr int kS4MinCtas = 2;
#endif

// Activation codes x weight codes: the instruction.
struct S4S4 {
    static constexpr int kMinCtas = kS4MinCtas;
    static __device__ __forceinline__ void mma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        ptx::mma_s4_s4(d, a, b0, b1);
    }
};
struct U4S4 {
    static constexpr int kMinCtas = kS4MinCtas;
    static __device__ __forceinline__ void mma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        ptx::mma_u4_s4(d, a, b0, b1);
    }
};

template <class T, class Codes>
struct Int4 {
    static constexpr int kARowBytes = 32, kAScaleBytes = 4, kBScaleBytes = 2, kStages = 4;
    static constexpr int kMinCtas = Codes::kMinCtas;
    static constexpr bool kRowScale = false;
    using Acc = float;

    static __device__ __forceinline__ int a_scale_offset(int lane) { return lane / 4 * 8; }  // rows g, g + 8
    static __device__ __forceinline__ int b_scale_offset(int lane) { return lane % 4 * 4; }  // columns 2c, 2c + 1

    template <int kMt, int kNt>
    static __device__ __forceinline__ void step(float (&acc)[kMt][kNt][4], const WarpStage& s) {
        uint32_t b[kNt / 2][4];
#pragma unroll
        for (int pair = 0; pair < kNt / 2; ++pair) load_b(b[pair], s.b + pair * 16 * 32, s.lane);
        float w_scale[kNt][2];
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt) {
            const uint32_t two = ptx::load_shared_4(s.b_scale + 8 * nt * kBScaleBytes);
            w_scale[nt][0] = low_to_float<T>(two);
            w_scale[nt][1] = high_to_float<T>(two);
        }
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
            uint32_t a[4];
            load_a<2>(a, s.a + mt * 16 * kARowBytes, 0, s.lane);
            const uint2 rows = ptx::load_shared_8(s.a_scale + 16 * mt * kAScaleBytes);
            const float x_scale[2] = {__uint_as_float(rows.x), __uint_as_float(rows.y)};
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) {
                const int start = __float_as_int(kMagic);
                int d[4] = {start, start, start, start};
                Codes::mma(d, a, b[nt / 2][nt % 2 * 2], b[nt / 2][nt % 2 * 2 + 1]);
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    acc[mt][nt][i] =
                        fmaf(__int_as_float(d[i]) - kMagic, x_scale[i / 2] * w_scale[nt][i % 2], acc[mt][nt][i]);
            }
        }
    }
};

}  // namespace svdq::portable
