// Tiles, shared-memory rows and the map from a tile's columns to rows of the weight.
#pragma once

#include <utility>

#include "../common/swizzle.cuh"
#include "../ptx/ld_st.cuh"
#include "svdq/svdq.h"
#include "tiles.h"

namespace svdq::portable {

struct GemmArgs {
    const uint8_t* codes;    // [M, K] in the format's bytes
    const uint8_t* scales;   // see workspace.h
    const uint8_t* t;        // [M, R] act dtype
    const uint8_t* qweight;  // [N, K/2]
    const uint8_t* wscale;   // [K/64, N] in the format's bytes
    const uint8_t* lora_up;  // [N, R] act dtype
    const uint16_t* bias;    // [N] act dtype
    const float* wscale2;    // [N]
    uint16_t* y;             // [M, n_out] act dtype
    float* parts;            // of split tiles, and how many are there: split.cuh
    uint32_t* counters;
    int64_t m_pad;
    int m, n, k, r, n_out;
    int function;  // svdq_activation of each sum, or of each gate

    __device__ __forceinline__ bool gated() const { return n_out != n; }
};

// A CTA computes kBm x kBn of x . W^T with kWm x kWn warps.
template <int kBm_, int kBn_, int kWm_, int kWn_>
struct Tile {
    static constexpr int kBm = kBm_, kBn = kBn_, kWn = kWn_;
    static constexpr int kThreads = 32 * kWm_ * kWn_;
    static constexpr int kMt = kBm / (16 * kWm_);  // m16 tiles of a warp
    static constexpr int kNt = kBn / (8 * kWn_);   // n8 tiles of a warp
    static constexpr int kWarpM = 16 * kMt, kWarpN = 8 * kNt;
    static constexpr bool kSplits = can_split(kBm);
    static_assert(kMt >= 1 && kNt % 2 == 0, "B fragments come in pairs of n8 tiles");
    static_assert(2 * kBn == kThreads, "one 16-byte chunk of a 32-byte weight row per thread");
};

template <int kRow>
using TileAt = Tile<kTiles[kRow].bm, kTiles[kRow].bn, kTiles[kRow].wm, kTiles[kRow].wn>;
using LargestTile = TileAt<kLargestTile>;
using EveryTile = std::make_integer_sequence<int, kNumTiles>;

// Column j of a tile -> row of qweight, wscale, lora_up, bias. If gated, a warp's columns are half "value",
// half "gate", so that one thread holds both of a pair:
//
//   warp 0: | value 0..15 | gate 0..15 |   warp 1: | value 16..31 | gate 16..31 |   ...
//
// Aligned runs of 8 columns are 8 consecutive weight rows in both cases. Rows past the end map to >= n.
template <class Tile>
struct Columns {
    int n, half, out0;  // half: N/2 if gated, else 0; out0: first output column of the tile

    __device__ __forceinline__ Columns(const GemmArgs& p, int tile_n)
        : n(p.n), half(p.gated() ? p.n_out : 0), out0(tile_n * (p.gated() ? Tile::kBn / 2 : Tile::kBn)) {}

    __device__ __forceinline__ int weight_row(int j) const {
        if (half == 0) return out0 + j;
        constexpr int kPair = Tile::kWarpN / 2;
        const int in_warp = j % Tile::kWarpN;
        const int column = out0 + j / Tile::kWarpN * kPair + in_warp % kPair;
        if (column >= half) return n;
        return in_warp < kPair ? column : half + column;
    }
};

// Linear block index -> (tile_m, tile_n), in bands of 8 tiles of M: neighbours in time share weight and
// activations in L2.
__device__ __forceinline__ void tile_of_block(int block, int tiles_m, int tiles_n, int& tile_m, int& tile_n) {
    constexpr int kBand = 8;
    const int band = block / (kBand * tiles_n);
    const int rows = min(tiles_m - band * kBand, kBand);
    const int in_band = block - band * kBand * tiles_n;
    tile_m = band * kBand + in_band % rows;
    tile_n = in_band / rows;
}

// What a format's step() sees: one stage of shared memory, at this warp's part of the tile.
struct WarpStage {
    uint32_t a, b;     // shared addresses: the warp's first A and B row,
    uint32_t a_scale;  // this lane's first scale of the warp's rows,
    uint32_t b_scale;  // and of its columns: the format's a_scale_offset() and b_scale_offset()
    int lane;
};

// Fragments of A: 16 rows from row 0 of `a`, 32 bytes from 16-byte chunk `chunk`.
template <int kChunks>
__device__ __forceinline__ void load_a(uint32_t (&r)[4], uint32_t a, int chunk, int lane) {
    ptx::ldmatrix_x4(r, a + row_offset<kChunks>(lane % 16, chunk + lane / 16));
}

// Fragments of B, rows of 32 bytes: r[0], r[1] = b0, b1 of rows 0..7, r[2], r[3] of rows 8..15.
__device__ __forceinline__ void load_b(uint32_t (&r)[4], uint32_t b, int lane) {
    ptx::ldmatrix_x4(r, b + row_offset<2>(lane % 8 + lane / 16 * 8, lane / 8 % 2));
}

}  // namespace svdq::portable
