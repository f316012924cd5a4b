// An epilogue of gemm: the linear's output is not stored but quantized for the linear that reads it, as
// quantize of that one would: it is the hidden of an MLP.
//
// As in epilogue.cuh each warp finishes up to 32 of its rows at a time in its slab, but leaves the 16-bit numbers
// there, each 8 of them in one half of the 32 bytes that their sums had. Then the slabs side by side hold
// kTiles x kWm m16 tiles of the hidden, and the warps of the CTA take tasks in turn:
//
//                 64 columns: one block of K2    64 columns
//               +------+------+------+------+------+------+------+------+
//   m16 tile 0  |   slab of   |   slab of   |   slab of   |   slab of   |    quantize: one m16 tile, one block
//   m16 tile 1  |   warp 0    |   warp 1    |   warp 2    |   warp 3    |    rank: one m16 tile, all blocks of the CTA,
//               +-------------+-------------+-------------+-------------+          kRankTile columns of t
//   m16 tile 2  |   warp 4 ...                                               (LargeTile; gated: 16 columns a slab,
//                                                                             one block)
// Operands:  codes, scales of the second linear's workspace; parts [N tile][M][R2] f32, of t (sum_parts.cuh)
// Numerics:  quantize_block.cuh, so codes and scales are those of quantize. A part is fp32 over the CTA's columns
//            in ascending order of blocks.
#pragma once

#include "epilogue.cuh"
#include "quantize_block.cuh"

namespace svdq::portable {

struct HiddenGemmArgs : GemmArgs {
    QuantArgs next;  // of the second linear; its x and t are not used
    float* t_parts;
};

template <int kFormat, class T, class Tile>
struct QuantizeHidden {
    using Args = HiddenGemmArgs;
    using S = Slab<Tile>;
    static constexpr bool kSplits = false;
    static constexpr int kWarps = Tile::kThreads / 32;
    static constexpr int kRowTiles = kWarps / Tile::kWn * S::kTiles;  // m16 tiles at a time
    static constexpr int kRankTile = 16;
    static_assert(Tile::kMt % S::kTiles == 0, "whole rounds");

    // Which half, in bytes: a row starts 8 banks behind the one before it, so that eight lanes with 16 bytes each, four
    // in either row, meet all banks once.
    static __device__ __forceinline__ int half(int row) { return row % 2 * 16; }

    // Elements `column`.. of the hidden's row `in_tile` of m16 tile `tile`, both of the CTA and of this round.
    static __device__ __forceinline__ Octet octet(const uint8_t* smem, int tile, int in_tile, int column, int width) {
        const int warp = tile / S::kTiles * Tile::kWn + column / width;
        const int row = tile % S::kTiles * 16 + in_tile;
        const uint8_t* at = smem + warp * S::kBytes + row * S::kPitch * 4 + column % width * 4 + half(row);
        const uint4 v = *reinterpret_cast<const uint4*>(at);
        return {{v.x, v.y, v.z, v.w}};
    }

    static __device__ __forceinline__ void quantize(const QuantArgs& p, const uint8_t* smem, int tile, int column,
                                                    int width, int64_t row0, int block, int lane) {
        const int g = lane / 4, c = lane % 4;
        const uint16_t* const act_mul = p.act_mul + block * 64 + 8 * c;
        const Octet mul[2] = {load_octet(act_mul, true), load_octet(act_mul + 32, true)};
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            Octet x[2];
#pragma unroll
            for (int b = 0; b < 2; ++b) {
                x[b] = octet(smem, tile, 8 * h + g, column + 32 * b + 8 * c, width);
                smooth<T>(x[b], mul[b], p.shift);
            }
            const int64_t row = row0 + 8 * h + g;
            store_block<kFormat, T>(p, x, row, block, c, row < p.m);
        }
    }

    static __device__ __forceinline__ void rank(const QuantArgs& p, float* parts, const uint8_t* smem, int tile,
                                                int rank0, int width, int64_t row0, int block0, int blocks, int lane) {
        const int g = lane / 4, c = lane % 4;
        float acc[kRankTile / 8][4] = {};
        const uint16_t* down = p.lora_down + static_cast<int64_t>(rank0 + g) * p.k + block0 * 64 + 8 * c;
#pragma unroll 1
        for (int block = 0; block < blocks; ++block, down += 64) {
            Octet x[2][2], w[kRankTile / 8][2];
#pragma unroll
            for (int j = 0; j < kRankTile / 8; ++j)
#pragma unroll
                for (int b = 0; b < 2; ++b)
                    w[j][b] = load_octet(down + static_cast<int64_t>(8 * j) * p.k + 32 * b, true);
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int b = 0; b < 2; ++b) x[h][b] = octet(smem, tile, 8 * h + g, 64 * block + 32 * b + 8 * c, width);
#pragma unroll
            for (int j = 0; j < kRankTile / 8; ++j) add_product<T>(acc[j], x, w[j]);
        }
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int64_t row = row0 + 8 * h + g;
            if (row >= p.m) continue;
#pragma unroll
            for (int j = 0; j < kRankTile / 8; ++j)
                *reinterpret_cast<float2*>(parts + row * p.r + rank0 + 8 * j + 2 * c) =
                    make_float2(acc[j][2 * h], acc[j][2 * h + 1]);
        }
    }

    static __device__ __forceinline__ void run(const Args& p, const Columns<Tile>& columns, uint8_t* smem,
                                               float (&acc)[Tile::kMt][Tile::kNt][4], int m0, int warp, int lane) {
        const int width = p.gated() ? Tile::kWarpN / 2 : Tile::kWarpN;  // hidden columns of a slab
        const int tile_width = width * Tile::kWn, chunks = width / 8;
        const int blocks = min(tile_width, p.n_out - columns.out0) / 64, block0 = columns.out0 / 64;
        const int quantizing = kRowTiles * blocks, tasks = quantizing + kRowTiles * (p.next.r / kRankTile);
        const int warp_m = warp / Tile::kWn, column0 = columns.out0 + warp % Tile::kWn * width;
        float* const slab = reinterpret_cast<float*>(smem + warp * S::kBytes);
        float* const parts = p.t_parts + static_cast<int64_t>(columns.out0 / tile_width) * p.m * p.next.r;

        if (p.next.counters && blockIdx.x == 0)
            for (int i = threadIdx.x; i < kMaxSplitTiles; i += Tile::kThreads) p.next.counters[i] = 0;
#pragma unroll 1
        for (int mt = 0; mt < Tile::kMt; mt += S::kTiles) {
            put_in_slab<Tile>(slab, acc, 0, lane);
            __syncwarp();
#pragma unroll 1
            for (int i = lane; i < S::kRows * chunks; i += 32) {
                const int in_slab = i / chunks, chunk = i % chunks, column = column0 + 8 * chunk;
                if (m0 + warp_m * Tile::kWarpM + 16 * mt + in_slab >= p.m || column >= p.n_out) continue;
                float* const at = slab + in_slab * S::kPitch + 8 * chunk;
                *reinterpret_cast<uint4*>(at + half(in_slab) / 4) = finish8<T>(p, at, column, width);
            }
            __syncthreads();
#pragma unroll 1
            for (int task = warp; task < tasks; task += kWarps) {
                const int tile = task % kRowTiles, other = task / kRowTiles;
                const int64_t row0 = m0 + tile / S::kTiles * Tile::kWarpM + 16 * (mt + tile % S::kTiles);
                if (row0 >= p.m) continue;
                if (task < quantizing)
                    quantize(p.next, smem, tile, 64 * other, width, row0, block0 + other, lane);
                else
                    rank(p.next, parts, smem, tile, (other - blocks) * kRankTile, width, row0, block0, blocks, lane);
            }
            __syncthreads();
#pragma unroll
            for (int i = 0; i + S::kTiles < Tile::kMt; ++i)  // the next ones, in the registers of these
#pragma unroll
                for (int nt = 0; nt < Tile::kNt; ++nt)
#pragma unroll
                    for (int e = 0; e < 4; ++e) acc[i][nt][e] = acc[i + S::kTiles][nt][e];
        }
    }
};

}  // namespace svdq::portable
