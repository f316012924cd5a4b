// nvfp4: e2m1 activations times e2m1 weights, e4m3 scales per 16 elements of both, fp32 accumulation.
//
// sm_120 has an instruction for it: format_nvfp4_sm120.cuh. Elsewhere, here, the same fragments are decoded to f16 and
// multiplied by four m16n8k16. That loses nothing: code (2 significant bits) times scale (4) fits f16 exactly, from
// 2^-10 to 2688; products and sums are fp32 as in the native instruction. K is permuted alike in A and B: the pair
// (j, j + 4) of every lane's 8 codes is one register, so a register stays inside one group of 16.
#pragma once

#include "format_nvfp4_sm120.cuh"

#if !SVDQ_NATIVE_NVFP4

#include "../common/types.cuh"
#include "../ptx/mma.cuh"
#include "tile.cuh"

namespace svdq::portable {

// e4m3 byte -> f16 pair of that value twice. The fields line up: f16 bits = byte << 7, times 2^(15 - 7).
__device__ __forceinline__ __half2 e4m3_pair(uint32_t byte) {
    const uint32_t v = byte & 0x7fu;
    const __half h = __hmul(__ushort_as_half(static_cast<unsigned short>(v << 7)), __float2half_rn(256.f));
    return __half2half2(v == 0x7fu ? __ushort_as_half(static_cast<unsigned short>(0x7fff)) : h);
}

// Codes j and j + 4 of a word, times their scale. f16 bits of an e2m1 = its fields moved up, times 2^(15 - 1).
__device__ __forceinline__ uint32_t e2m1_pair(uint32_t word, int j, __half2 scale) {
    const uint32_t c = word >> (4 * j);
    const uint32_t v = (c & 0x00080008u) << 12 | (c & 0x00070007u) << 9;
    const __half2 value = __hmul2(bit_cast<__half2>(v), __float2half2_rn(16384.f));
    return bit_cast<uint32_t>(__hmul2(value, scale));
}

struct NVFP4 {
    static constexpr int kARowBytes = 32, kAScaleBytes = 4, kBScaleBytes = 4, kStages = 4;
    static constexpr int kMinCtas = 1;
    static constexpr bool kRowScale = false;
    using Acc = float;

    static __device__ __forceinline__ int a_scale_offset(int lane) { return lane / 4 * 8; }  // rows g, g + 8
    static __device__ __forceinline__ int b_scale_offset(int lane) { return lane / 4 * 4; }  // row g of the fragment

    template <int kMt, int kNt>
    static __device__ __forceinline__ void step(float (&acc)[kMt][kNt][4], const WarpStage& s) {
        uint32_t w[kNt / 2][4];
#pragma unroll
        for (int pair = 0; pair < kNt / 2; ++pair) load_b(w[pair], s.b + pair * 16 * 32, s.lane);
        const int byte = s.lane % 4 / 2;  // lanes c = 0, 1 hold group 0 of a half, lanes 2, 3 group 1
        uint32_t b[kNt][2][4];            // [n8 tile][half of the 64][pair]
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt) {
            const uint32_t scales = ptx::load_shared_4(s.b_scale + 8 * nt * kBScaleBytes) >> (8 * byte);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const __half2 scale = e4m3_pair(scales >> (16 * half));
#pragma unroll
                for (int j = 0; j < 4; ++j) b[nt][half][j] = e2m1_pair(w[nt / 2][nt % 2 * 2 + half], j, scale);
            }
        }
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
            uint32_t a[4];
            load_a<2>(a, s.a + mt * 16 * kARowBytes, 0, s.lane);
            const uint2 rows = ptx::load_shared_8(s.a_scale + 16 * mt * kAScaleBytes);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int shift = 16 * half + 8 * byte;
                const __half2 top = e4m3_pair(rows.x >> shift), bottom = e4m3_pair(rows.y >> shift);
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const uint32_t d[4] = {
                        e2m1_pair(a[2 * half], 2 * k, top), e2m1_pair(a[2 * half + 1], 2 * k, bottom),
                        e2m1_pair(a[2 * half], 2 * k + 1, top), e2m1_pair(a[2 * half + 1], 2 * k + 1, bottom)};
#pragma unroll
                    for (int nt = 0; nt < kNt; ++nt)
                        ptx::mma_16bit(__half(), acc[mt][nt], d, b[nt][half][2 * k], b[nt][half][2 * k + 1]);
                }
            }
        }
    }
};

}  // namespace svdq::portable

#endif  // !SVDQ_NATIVE_NVFP4
