// Epilogue of gemm: bias, activation, one rounding, 16-byte stores.
//
// The accumulators go through shared memory, each warp through its own slab, up to 32 rows at a time; a lane
// then holds 8 consecutive outputs of a row. The activation is chosen at run time: it costs two uniform branches
// per 8 outputs.
#pragma once

#include "../common/activate.cuh"
#include "../common/activation_exact.cuh"
#include "../common/types.cuh"
#include "tile.cuh"

namespace svdq::portable {

template <class Tile>
struct Slab {
    static constexpr int kTiles = Tile::kMt < 2 ? Tile::kMt : 2;  // m16 tiles at a time
    static constexpr int kRows = 16 * kTiles;
    static constexpr int kPitch = Tile::kWarpN + 8;  // floats; 8 words past a multiple of 16: no write conflicts
    static constexpr int kBytes = kRows * kPitch * 4;
    static constexpr int kCtaBytes = kBytes * (Tile::kThreads / 32);
};

// 8 sums and their bias.
template <class T>
__device__ __forceinline__ void load8(float (&v)[8], const float* sums, const uint16_t* bias) {
    const float4 lo = *reinterpret_cast<const float4*>(sums), hi = *reinterpret_cast<const float4*>(sums + 4);
    v[0] = lo.x, v[1] = lo.y, v[2] = lo.z, v[3] = lo.w;
    v[4] = hi.x, v[5] = hi.y, v[6] = hi.z, v[7] = hi.w;
    const uint4 b = __ldg(reinterpret_cast<const uint4*>(bias));
    const uint32_t pair[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        v[2 * i] += low_to_float<T>(pair[i]);
        v[2 * i + 1] += high_to_float<T>(pair[i]);
    }
}

// m16 tiles m0 .. m0 + kTiles - 1 of this warp's accumulators -> its slab.
template <class Tile>
__device__ __forceinline__ void put_in_slab(float* slab, const float (&acc)[Tile::kMt][Tile::kNt][4], int m0,
                                            int lane) {
    using S = Slab<Tile>;
#pragma unroll
    for (int mt = 0; mt < S::kTiles; ++mt)
#pragma unroll
        for (int nt = 0; nt < Tile::kNt; ++nt) {
            const float (&d)[4] = acc[m0 + mt][nt];
            float* at = slab + (16 * mt + lane / 4) * S::kPitch + 8 * nt + 2 * (lane % 4);
            *reinterpret_cast<float2*>(at) = make_float2(d[0], d[1]);
            *reinterpret_cast<float2*>(at + 8 * S::kPitch) = make_float2(d[2], d[3]);
        }
}

// The 8 outputs from column `column` of y on: their sums lie at `from`, their gates, if any, `width` floats behind.
template <class T>
__device__ __forceinline__ uint4 finish8(const GemmArgs& p, const float* from, int column, int width) {
    float v[8];
    load8<T>(v, from + (p.gated() ? width : 0), p.bias + column + (p.gated() ? p.n_out : 0));
    activate<Exact, 8>(v, p.function);
    if (p.gated()) {
        float value[8];
        load8<T>(value, from, p.bias + column);
#pragma unroll
        for (int j = 0; j < 8; ++j) v[j] *= value[j];
    }
    uint32_t pair[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
        pair[j] = Act16<T>::to_pair(Act16<T>::saturate(v[2 * j]), Act16<T>::saturate(v[2 * j + 1]));
    return make_uint4(pair[0], pair[1], pair[2], pair[3]);
}

// The epilogue of a linear: y. Others have the same members; see gemm_kernel.
template <class T, class Tile>
struct StoreY {
    using Args = GemmArgs;
    static constexpr bool kSplits = Tile::kSplits;  // K may be split

    // acc: this warp's part of the tile from row m0 on; smem: the CTA's, which nobody reads any more.
    static __device__ __forceinline__ void run(const Args& p, const Columns<Tile>& columns, uint8_t* smem,
                                               const float (&acc)[Tile::kMt][Tile::kNt][4], int m0, int warp,
                                               int lane) {
        using S = Slab<Tile>;
        const int width = p.gated() ? Tile::kWarpN / 2 : Tile::kWarpN;
        const int chunks = width / 8;  // of 8 outputs per row
        const int row0 = m0 + warp / Tile::kWn * Tile::kWarpM, column0 = columns.out0 + warp % Tile::kWn * width;
        float* const slab = reinterpret_cast<float*>(smem + warp * S::kBytes);
#pragma unroll
        for (int mt = 0; mt < Tile::kMt; mt += S::kTiles) {
            put_in_slab<Tile>(slab, acc, mt, lane);
            __syncwarp();
#pragma unroll 1
            for (int i = lane; i < S::kRows * chunks; i += 32) {
                const int in_slab = i / chunks, chunk = i % chunks;
                const int row = row0 + 16 * mt + in_slab, column = column0 + 8 * chunk;
                if (row >= p.m || column >= p.n_out) continue;
                const uint4 out = finish8<T>(p, slab + in_slab * S::kPitch + 8 * chunk, column, width);
                *reinterpret_cast<uint4*>(p.y + static_cast<int64_t>(row) * p.n_out + column) = out;
            }
            __syncwarp();
        }
    }
};

}  // namespace svdq::portable
