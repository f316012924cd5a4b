// What a warp makes of 16 rows x 64 elements of a linear's input: codes, scales, and its part of t.
//
// A lane (g = lane/4, c = lane%4) holds, of each 32-element half of the block, elements 8c..8c+7 of rows g
// and g+8. The sum over K does not care about order, so the same registers, two words at a time, are A fragments
// of m16n8k16; lora_down is read in the same order and is B. A group of 64 is a quad of lanes, a group of 16 a pair.
#pragma once

#include "../common/octet.cuh"
#include "../ptx/mma.cuh"
#include "workspace.h"

namespace svdq::portable {

struct QuantArgs {
    const uint16_t* x;          // [M, K] act dtype
    const uint16_t* act_mul;    // [K]
    const uint16_t* lora_down;  // [R, K]
    uint8_t* codes;
    uint8_t* scales;
    uint16_t* t;         // [M, R]
    uint32_t* counters;  // [kMaxSplitTiles] of gemm, to be 0; or nullptr
    int64_t m_pad;
    int m, k, r;
    float shift;
    float inv_qmax;  // fp32(1 / qmax)
    bool act_unsigned;
};

// Of the linear whose input is quantized.
template <int kFormat>
QuantArgs quant_args(const LinearArgs& args) {
    const svdq_linear_params& p = args.p;
    QuantArgs q = {};
    q.x = static_cast<const uint16_t*>(p.x);
    q.act_mul = static_cast<const uint16_t*>(p.act_mul);
    q.lora_down = static_cast<const uint16_t*>(p.lora_down);
    q.codes = args.codes();
    q.scales = args.scales();
    q.t = reinterpret_cast<uint16_t*>(args.t());
    q.counters = args.counters();
    q.m_pad = args.ws.m_pad;
    q.m = p.m, q.k = p.k, q.r = p.r;
    q.shift = p.act_shift;
    const bool u4 = kFormat == SVDQ_FORMAT_INT4 && p.act_unsigned;
    q.act_unsigned = u4;
    q.inv_qmax = 1.f / (kFormat == SVDQ_FORMAT_NVFP4 ? 6.f : kFormat == SVDQ_FORMAT_W4A8 ? 127.f : u4 ? 15.f : 7.f);
    return q;
}

template <class T>
__device__ __forceinline__ float element(const Octet& o, int i) {
    return i % 2 ? high_to_float<T>(o.pair[i / 2]) : low_to_float<T>(o.pair[i / 2]);
}

// Where the scale of a row lies in its group's run of them; see workspace.h.
__device__ __forceinline__ int64_t scale_position(int64_t row) { return (row & ~15) + row % 8 * 2 + (row >> 3 & 1); }

// int4: one group of 64 = both octets of the four lanes of a quad.
template <class T>
__device__ __forceinline__ void store_int4(const QuantArgs& p, const Octet (&x)[2], int64_t row, int block, int c,
                                           bool valid) {
    const uint32_t absmax = max_lanes<4>(max_halves(max_bits(max_bits(0, x[0]), x[1])));
    const GroupScale s = group_scale<T>(absmax, p.inv_qmax, 3.4e38f);
    if (valid) {
#pragma unroll
        for (int b = 0; b < 2; ++b) {
            const auto value = [&](int i) { return element<T>(x[b], i); };
            const uint32_t word = p.act_unsigned ? int_codes<8, 4, true>(s, value) : int_codes<8, 4, false>(s, value);
            *reinterpret_cast<uint32_t*>(p.codes + row * (p.k / 2) + block * 32 + b * 16 + c * 4) = word;
        }
    }
    if (c == 0) {  // also of the padding rows of this CTA: gemm copies scales 16 bytes at a time
        const float stored = Act16<T>::to_float(Act16<T>::to_bits(s.scale));
        reinterpret_cast<float*>(p.scales)[block * p.m_pad + scale_position(row)] =
            s.finite ? stored : __int_as_float(0x7fffffff);
    }
}

// nvfp4: octet b of lanes c = 0, 1 is group 2b, of lanes 2, 3 group 2b + 1.
template <class T>
__device__ __forceinline__ void store_nvfp4(const QuantArgs& p, const Octet (&x)[2], int64_t row, int block, int c,
                                            bool valid) {
    uint32_t bytes = 0;
#pragma unroll
    for (int b = 0; b < 2; ++b) {
        const uint32_t absmax = max_lanes<2>(max_halves(max_bits(0, x[b])));
        const GroupScale s = group_scale<T>(absmax, p.inv_qmax, kFp8Max);
        uint32_t word = 0;
#pragma unroll
        for (int i = 0; i < 8; ++i) word |= e2m1_code(element<T>(x[b], i), s) << (4 * i);
        word = s.live ? word : 0u;
        if (valid) *reinterpret_cast<uint32_t*>(p.codes + row * (p.k / 2) + block * 32 + b * 16 + c * 4) = word;
        const uint32_t own = s.finite ? e4m3_byte(s.scale) : kFp8Nan;
        const uint32_t next = __shfl_down_sync(0xffffffffu, own, 2);
        bytes |= (own | next << 8) << (16 * b);
    }
    if (c == 0)  // padding rows too
        reinterpret_cast<uint32_t*>(p.scales)[block * p.m_pad + scale_position(row)] = bytes;
}

// Formats with scales per group: the smoothed halves of one row of block `block`.
template <int kFormat, class T>
__device__ __forceinline__ void store_block(const QuantArgs& p, const Octet (&x)[2], int64_t row, int block, int c,
                                            bool valid) {
    static_assert(kFormat == SVDQ_FORMAT_INT4 || kFormat == SVDQ_FORMAT_NVFP4, "the others need the whole row");
    if constexpr (kFormat == SVDQ_FORMAT_INT4)
        store_int4<T>(p, x, row, block, c, valid);
    else
        store_nvfp4<T>(p, x, row, block, c, valid);
}

// acc[16 rows, 8 of R] += x . w^T over a block: x are rows g and g + 8, w is row g of lora_down.
template <class T>
__device__ __forceinline__ void add_product(float (&acc)[4], const Octet (&x)[2][2], const Octet (&w)[2]) {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        const Octet &top = x[0][s / 2], &bottom = x[1][s / 2], &down = w[s / 2];
        const int lo = 2 * (s % 2);
        const uint32_t a[4] = {top.pair[lo], bottom.pair[lo], top.pair[lo + 1], bottom.pair[lo + 1]};
        ptx::mma_16bit(T(), acc, a, down.pair[lo], down.pair[lo + 1]);
    }
}

}  // namespace svdq::portable
