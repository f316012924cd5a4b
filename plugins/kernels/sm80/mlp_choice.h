// Where fc1's kernel (b) can quantize the hidden, and with which tile. Host code; no CUDA call.
#pragma once

#include <optional>

#include "choice.h"

namespace svdq::sm80 {

constexpr int32_t kAlwaysFusedTokens = 2048;  // from there on the 16-bit hidden needs no workspace
constexpr int32_t kMaxFusedRank = 128;        // of fc2: the parts of t are as large as R / 64 16-bit hiddens

inline bool can_fuse(const svdq_mlp_params& p) { return p.fc2.r <= kMaxFusedRank; }

// Tiles of N of fc1: the parts of fc2's t.
inline int64_t hidden_tiles(const svdq_linear_params& fc1, TileKind tile) {
    const int width = tile == TileKind::kLarge ? kLargeModel.bn : kMediumModel.bn;
    return (fc1.n + width - 1) / width;
}

// A tile whose columns of the hidden are whole blocks of 64 and whose K is not split; nothing: run the chain.
inline std::optional<TileKind> fused_tile(const svdq_mlp_params& p, const Workspace& fc1, int sms) {
    if (!can_fuse(p)) return std::nullopt;
    if (p.fc1.m >= kAlwaysFusedTokens) return TileKind::kLarge;
    const Choice choice = choose(p.fc1, fc1, sms);
    if (choice.splits > 1 || choice.tile == TileKind::kSmall) return std::nullopt;
    if (choice.tile == TileKind::kMedium && p.fc1.activation == SVDQ_ACT_GEGLU) return std::nullopt;
    return choice.tile;
}

}  // namespace svdq::sm80
