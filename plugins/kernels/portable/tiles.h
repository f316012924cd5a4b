// The tiles of gemm, one row each: a row is compiled for every format (gemm.cuh) and considered for every shape
// (choice.h). Host code.
#pragma once

#include <iterator>
#include <limits>

namespace svdq::portable {

// Costs are in steps (64 elements of K) of one large CTA.
struct TileRow {
    int bm, bn;                  // rows and columns of the product that a CTA makes,
    int wm, wn;                  // with wm x wn warps
    int min_tokens, max_tokens;  // of a linear that it is considered for
    double busy, alone;          // what one step of a CTA takes: among many on its multiprocessor; at least
    double part;                 // to write and read back its sums, where K is split
    bool hidden;                 // compiled with an MLP's epilogue, too (mlp.cuh)
};

// Up to here two tiles of 16 tokens read the weight faster than one of more.
constexpr int kFewTokens = 32, kAnyTokens = std::numeric_limits<int>::max();

// clang-format off
constexpr TileRow kTiles[] = {
    // bm   bn  wm wn  tokens                        busy  alone  part  hidden
    { 16,  64,  1, 4,  1,              kFewTokens, 0.15,   0.9,   0.4,  false},  // more CTAs, no wasted rows
    { 64,  64,  2, 2,  kFewTokens + 1, kAnyTokens, 0.3375, 0.9,   1.5,  true},   // where large ones leave SMs idle;
                                                                                 // fewer loads are used twice
    {128, 128,  2, 4,  kFewTokens + 1, kAnyTokens, 1.0,    1.0,   0.0,  true},
};
// clang-format on
constexpr int kNumTiles = static_cast<int>(std::size(kTiles));
constexpr int kLargestTile = kNumTiles - 1;

// Several CTAs may share one such tile's K: split.cuh.
constexpr bool can_split(int bm) { return bm < 128; }

// The largest of those, whose sums the workspace has room for.
constexpr const TileRow& largest_split_tile() {
    const TileRow* most = nullptr;
    for (const TileRow& t : kTiles)
        if (can_split(t.bm) && (!most || t.bm * t.bn > most->bm * most->bn)) most = &t;
    return *most;
}
constexpr TileRow kSplitTile = largest_split_tile();

}  // namespace svdq::portable
