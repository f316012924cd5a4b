// quantize, any sm_80+: x^ = round((x + shift) . act_mul), its codes and scales, and t = x . lora_down^T.
//
// Grid: (M / 16 or 32, R tiles of 32 or 64, at least 1). A CTA owns 16 or 32 rows of x over all of K; its 8 or 16
// warps take the 64-element blocks of K in turn (warp w: blocks w, w + warps, ...), so nothing synchronizes before
// the end:
//
//             K ->   64     64           64     64
//           +------+------+--   --+------+------+--
//   M       |  w0  |  w1  |  ...  |  w7  |  w0  |  ...     x is read once, 16 bytes a lane
//           +------+------+--   --+------+------+--
//
// How a warp holds a block and what it makes of it: quantize_block.cuh. Only the CTAs of R tile 0 quantize.
//
// Operands:  x [M, K], act_mul [K], lora_down [R, K] act dtype -> codes, scales, t: see workspace.h
// Numerics:  common/numerics.cuh. t: fp32 over a warp's blocks in ascending order, then the warps' partial sums
//            in a fixed tree, one rounding. w4a8 needs the whole row's absmax first: a second pass over rows that
//            are in L2 by then.
#pragma once

#include "../common/launch.h"
#include "../ptx/barrier.cuh"
#include "quantize_block.cuh"

namespace svdq::portable {

// kRankTile: columns of t per CTA; 64 reads x half as often when R is large.
// kMt: m16 tiles of rows per CTA; 2 reads lora_down half as often, 1 spreads few rows over more SMs.
// kAhead: n8 tiles of lora_down whose loads are in flight together. kPrefetch: x is loaded a block ahead.
template <int kRankTile_, int kMt_, int kWarps_, int kAhead_, bool kPrefetch_, int kMinCtas_>
struct QuantTile {
    static constexpr int kRankTile = kRankTile_, kMt = kMt_, kWarps = kWarps_, kAhead = kAhead_;
    static constexpr int kMinCtas = kMinCtas_, kRows = 16 * kMt;
    static constexpr bool kPrefetch = kPrefetch_;
};
using FewRows = QuantTile<32, 1, 16, 4, true, 1>;   // one CTA per SM: all of its warps on one m16 tile
using ManyRows = QuantTile<32, 1, 8, 2, false, 3>;  // three CTAs hide each other's latencies
using LargeRank = QuantTile<64, 2, 8, 4, false, 1>;

// w4a8: even elements of the octet, then odd ones: a8_position().
template <class T>
__device__ __forceinline__ void store_w4a8(const QuantArgs& p, const Octet& x, const GroupScale& s, int64_t row, int k0,
                                           int c) {
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
        const uint32_t word = int_codes<4, 8, false>(s, [&](int i) { return element<T>(x, 2 * i + odd); });
        *reinterpret_cast<uint32_t*>(p.codes + row * p.k + k0 + 16 * odd + 4 * c) = word;
    }
}

// w4a16: a16_position().
__device__ __forceinline__ void store_w4a16(const QuantArgs& p, const Octet& x, int64_t row, int k0, int c) {
    uint32_t* out = reinterpret_cast<uint32_t*>(p.codes + (row * p.k + k0) * 2);
    const Octet v = pair_up(x);
#pragma unroll
    for (int j = 0; j < 4; ++j) out[(16 * (j / 2) + 8 * (j % 2) + 2 * c) / 2] = v.pair[j];
}

template <int kFormat, class T, class Tile>
__global__ void __launch_bounds__(Tile::kWarps * 32, Tile::kMinCtas) quantize_kernel(const QuantArgs p) {
    constexpr int kRankTile = Tile::kRankTile, kMt = Tile::kMt, kWarps = Tile::kWarps, kQuantRows = Tile::kRows;
    constexpr int kRegisters = kMt * kRankTile / 2;        // of t's fragments
    __shared__ float partial[kWarps / 2][kRegisters][32];  // [warp][register][lane]
    __shared__ uint32_t row_max[kWarps][kQuantRows];
    constexpr bool kWholeRow = kFormat == SVDQ_FORMAT_W4A8 || kFormat == SVDQ_FORMAT_W4A16;
    ptx::launch_dependents();  // gemm, which waits for this one's end before it reads anything of it

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int g = lane / 4, c = lane % 4;
    const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kQuantRows;
    const int rank0 = blockIdx.y * kRankTile;
    const int ranks = min(p.r - rank0, kRankTile);  // <= 0: no low-rank branch
    const bool quantizing = blockIdx.y == 0;
    const int blocks = p.k / 64;
    static_assert(kWarps * 32 >= kMaxSplitTiles, "a thread per counter");
    if (p.counters && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x < kMaxSplitTiles) p.counters[threadIdx.x] = 0;

    float acc[kMt][kRankTile / 8][4] = {};
    uint32_t seen[kMt][2] = {};  // per row: largest |bits|, where the whole row matters

    Octet next[kMt][2][2];  // [m16 tile][row g or g + 8][half of the block]
    const auto load_x = [&](int block) {
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int b = 0; b < 2; ++b) {
                    const int64_t row = row0 + 16 * mt + 8 * h + g;
                    next[mt][h][b] =
                        load_octet(p.x + row * p.k + block * 64 + 8 * c + 32 * b, row < p.m && block < blocks);
                }
    };
    if constexpr (Tile::kPrefetch) load_x(warp);
    for (int block = warp; block < blocks; block += kWarps) {
        if constexpr (!Tile::kPrefetch) load_x(block);
        Octet x[kMt][2][2];
#pragma unroll
        for (int i = 0; i < kMt * 4; ++i) (&x[0][0][0])[i] = (&next[0][0][0])[i];
        if constexpr (Tile::kPrefetch) load_x(block + kWarps);
        const int k0 = block * 64 + 8 * c;

        if (ranks > 0) {
            constexpr int kAhead = Tile::kAhead;
#pragma unroll
            for (int j0 = 0; j0 < kRankTile / 8; j0 += kAhead) {
                if (8 * j0 >= ranks) break;
                Octet w[kAhead][2];
#pragma unroll
                for (int j = 0; j < kAhead; ++j)
#pragma unroll
                    for (int b = 0; b < 2; ++b) {
                        const int rank = 8 * (j0 + j) + g;  // rows past R are zeros
                        const int64_t at = static_cast<int64_t>(rank0 + rank) * p.k + k0 + 32 * b;
                        w[j][b] = load_octet(p.lora_down + at, rank < ranks);
                    }
#pragma unroll
                for (int j = 0; j < kAhead; ++j)
#pragma unroll
                    for (int mt = 0; mt < kMt; ++mt) add_product<T>(acc[mt][j0 + j], x[mt], w[j]);
            }
        }
        if (!quantizing) continue;

        const Octet mul[2] = {load_octet(p.act_mul + k0, true), load_octet(p.act_mul + k0 + 32, true)};
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                Octet(&v)[2] = x[mt][h];
                const int64_t row = row0 + 16 * mt + 8 * h + g;
                const bool valid = row < p.m;
                if constexpr (kFormat == SVDQ_FORMAT_W4A16) seen[mt][h] = max_bits(max_bits(seen[mt][h], v[0]), v[1]);
                smooth<T>(v[0], mul[0], p.shift);
                smooth<T>(v[1], mul[1], p.shift);
                if constexpr (!kWholeRow) store_block<kFormat, T>(p, v, row, block, c, valid);
                if constexpr (kFormat == SVDQ_FORMAT_W4A8) seen[mt][h] = max_bits(max_bits(seen[mt][h], v[0]), v[1]);
                if constexpr (kFormat == SVDQ_FORMAT_W4A16) {
                    if (valid) store_w4a16(p, v[0], row, block * 64, c);
                    if (valid) store_w4a16(p, v[1], row, block * 64 + 32, c);
                }
            }
    }

    // ---- t: 8 partial sums, halved three times ------------------------------------------------------------
    if (ranks > 0) {
        float* flat = &acc[0][0][0];
#pragma unroll
        for (int half = kWarps / 2; half > 0; half /= 2) {
            if (warp >= half && warp < 2 * half)
#pragma unroll
                for (int i = 0; i < kRegisters; ++i) partial[warp - half][i][lane] = flat[i];
            __syncthreads();
            if (warp < half)
#pragma unroll
                for (int i = 0; i < kRegisters; ++i) flat[i] += partial[warp][i][lane];
            __syncthreads();
        }
        if (warp == 0) {
#pragma unroll
            for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
                for (int j = 0; j < kRankTile / 8; ++j)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const int64_t row = row0 + 16 * mt + 8 * h + g;
                        if (8 * j >= ranks || row >= p.m) continue;
                        const uint32_t pair = Act16<T>::to_pair(acc[mt][j][2 * h], acc[mt][j][2 * h + 1]);
                        *reinterpret_cast<uint32_t*>(p.t + row * p.r + rank0 + 8 * j + 2 * c) = pair;
                    }
        }
    }

    // ---- formats with one scale per row -------------------------------------------------------------------
    if constexpr (kWholeRow) {
        if (!quantizing) return;
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const uint32_t v = max_lanes<4>(max_halves(seen[mt][h]));
                if (c == 0) row_max[warp][16 * mt + 8 * h + g] = v;
            }
        __syncthreads();
        GroupScale scale[kMt][2];
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                uint32_t v = 0;
#pragma unroll
                for (int w = 0; w < kWarps; ++w) v = max(v, row_max[w][16 * mt + 8 * h + g]);
                scale[mt][h] = group_scale<T>(v, p.inv_qmax, 3.4e38f);
                if (kFormat == SVDQ_FORMAT_W4A16) scale[mt][h].scale = 1.f;
                const int64_t row = row0 + 16 * mt + 8 * h + g;
                if (warp == 0 && c == 0 && row < p.m)
                    reinterpret_cast<float*>(p.scales)[row] =
                        scale[mt][h].finite ? scale[mt][h].scale : __int_as_float(0x7fffffff);
            }
        if constexpr (kFormat == SVDQ_FORMAT_W4A8) {
            for (int block = warp; block < blocks; block += kWarps)
#pragma unroll
                for (int b = 0; b < 2; ++b) {
                    const int k0 = block * 64 + 32 * b;
                    const Octet mul = load_octet(p.act_mul + k0 + 8 * c, true);
#pragma unroll
                    for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
                        for (int h = 0; h < 2; ++h) {
                            const int64_t row = row0 + 16 * mt + 8 * h + g;
                            Octet v = load_octet(p.x + row * p.k + k0 + 8 * c, row < p.m);
                            smooth<T>(v, mul, p.shift);
                            if (row < p.m) store_w4a8<T>(p, v, scale[mt][h], row, k0, c);
                        }
                }
        }
    }
}

template <int kFormat, class T, class Tile>
cudaError_t launch_quantize_tile(const QuantArgs& q, cudaStream_t stream) {
    const int rank_tiles = q.r > 0 ? (q.r + Tile::kRankTile - 1) / Tile::kRankTile : 1;
    const dim3 grid((q.m + Tile::kRows - 1) / Tile::kRows, rank_tiles);
    return launch_kernel(quantize_kernel<kFormat, T, Tile>, {grid, Tile::kWarps * 32}, stream, q);
}

template <int kFormat, class T>
cudaError_t launch_quantize_as(const QuantArgs& q, cudaStream_t stream) {
    constexpr int kFewRows = 4096;  // 256 CTAs: below, one or two per SM on every GPU this code is for
    if (q.r > 32) return launch_quantize_tile<kFormat, T, LargeRank>(q, stream);
    return q.m < kFewRows ? launch_quantize_tile<kFormat, T, FewRows>(q, stream)
                          : launch_quantize_tile<kFormat, T, ManyRows>(q, stream);
}

template <int kFormat>
cudaError_t launch_quantize(const LinearArgs& args, cudaStream_t stream) {
    const QuantArgs q = quant_args<kFormat>(args);
    return args.p.dtype == SVDQ_F16 ? launch_quantize_as<kFormat, __half>(q, stream)
                                    : launch_quantize_as<kFormat, __nv_bfloat16>(q, stream);
}

}  // namespace svdq::portable
