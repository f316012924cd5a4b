// Where fc1's gemm can quantize the hidden, and with which tile. Host code; no CUDA call.
#pragma once

#include "../hidden.h"
#include "choice.h"

namespace svdq::portable {

constexpr int32_t kAlwaysFusedTokens = 2048;  // from there on the 16-bit hidden needs no workspace

// Columns of the hidden that a tile of fc1 makes.
inline int hidden_columns(const svdq_linear_params& fc1, int tile) {
    return kTiles[tile].bn / contract::kActivations[fc1.activation].rows_per_feature;
}

// A tile makes whole blocks of 64, and its part of t, R floats a row, takes no more bytes than those as 16-bit numbers.
inline bool can_fuse(const svdq_mlp_params& p, int tile) {
    const int columns = hidden_columns(p.fc1, tile);
    return kTiles[tile].hidden && columns % 64 == 0 && p.fc2.r * 4 <= columns * 2;
}

// HiddenKernels: one part per tile of N of fc1.
inline int64_t hidden_parts(const svdq_mlp_params& p, int tile) {
    return ceil_div(p.fc2.k, hidden_columns(p.fc1, tile));
}

inline int32_t hidden_tokens(const svdq_mlp_params& p, int tile) {
    const int32_t m = p.fc1.m;
    const bool large = can_fuse(p, kLargestTile);
    if (tile == kLargestTile) return large ? m : 0;
    if (tile != kNoTile && !can_fuse(p, tile)) return 0;
    return large ? std::min(m, kAlwaysFusedTokens - 1) : m;
}

inline int choose_hidden(const svdq_mlp_params& p, const Workspace& fc1, int sms) {
    if (p.fc1.m >= kAlwaysFusedTokens && can_fuse(p, kLargestTile)) return kLargestTile;
    const Choice choice = choose(p.fc1, fc1, sms);
    return choice.splits > 1 || !can_fuse(p, choice.tile) ? kNoTile : choice.tile;
}

}  // namespace svdq::portable
