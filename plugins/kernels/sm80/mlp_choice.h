// Where fc1's kernel (b) can quantize the hidden, and with which tile. Host code; no CUDA call.
#pragma once

#include <optional>

#include "choice.h"

namespace svdq::sm80 {

constexpr int32_t kAlwaysFusedTokens = 2048;  // from there on the 16-bit hidden needs no workspace

// Columns of the hidden that a tile of fc1 makes.
inline int hidden_columns(const svdq_linear_params& fc1, TileKind tile) {
    const int width = tile == TileKind::kLarge ? kLargeModel.bn : kMediumModel.bn;
    return fc1.activation == SVDQ_ACT_GEGLU ? width / 2 : width;
}

// Tiles of N of fc1: the parts of fc2's t.
inline int64_t hidden_tiles(const svdq_mlp_params& p, TileKind tile) {
    const int columns = hidden_columns(p.fc1, tile);
    return (p.fc2.k + columns - 1) / columns;
}

// A tile makes whole blocks of 64, and its part of t, R floats a row, takes no more bytes than those as 16-bit numbers.
inline bool can_fuse(const svdq_mlp_params& p, TileKind tile) {
    const int columns = hidden_columns(p.fc1, tile);
    return tile != TileKind::kSmall && columns % 64 == 0 && p.fc2.r * 4 <= columns * 2;
}

// Nothing: run the chain.
inline std::optional<TileKind> fused_tile(const svdq_mlp_params& p, const Workspace& fc1, int sms) {
    if (p.fc1.m >= kAlwaysFusedTokens && can_fuse(p, TileKind::kLarge)) return TileKind::kLarge;
    const Choice choice = choose(p.fc1, fc1, sms);
    if (choice.splits > 1 || !can_fuse(p, choice.tile)) return std::nullopt;
    return choice.tile;
}

}  // namespace svdq::sm80
