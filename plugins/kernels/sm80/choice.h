// Which tile kernel (b) takes, and into how many parts it splits K. Host code.
//
// A model of the busiest multiprocessor's time, in steps (64 elements of K) of one large CTA: CTAs that share a
// multiprocessor hide each other's latencies, so a few small ones take no longer than one. A part of a split
// tile is written and read once more, through the L2.
#pragma once

#include <algorithm>

#include "../common/device.h"
#include "../linear.h"

namespace svdq::sm80 {

enum class TileKind { kSmall, kMedium, kLarge };

struct Choice {
    TileKind tile;
    int splits;
};

struct TileModel {
    TileKind kind;
    int bm, bn;
    double busy, alone;  // steps that one step of a CTA takes: among many on its multiprocessor; at least
    double part;         // steps to write and read back its sums
};
constexpr TileModel kLargeModel = {TileKind::kLarge, 128, 128, 1.0, 1.0, 0.0};
constexpr TileModel kMediumModel = {TileKind::kMedium, 64, 64, 0.3375, 0.9, 1.5};  // less of what is loaded is used twice
constexpr TileModel kSmallModel = {TileKind::kSmall, 16, 64, 0.15, 0.9, 0.4};
constexpr double kCountingIn = 3.0;  // steps: fences and the counter

inline int64_t tiles(const TileModel& t, int64_t m, int64_t n) {
    return (m + t.bm - 1) / t.bm * ((n + t.bn - 1) / t.bn);
}

inline double cost(const TileModel& t, int64_t m, int64_t n, int steps, int splits, int sms) {
    const double ctas = static_cast<double>((tiles(t, m, n) * splits + sms - 1) / sms);  // on the busiest
    const double product = (steps + splits - 1) / splits * std::max(t.alone, t.busy * ctas);
    return splits == 1 ? product : product + kCountingIn + t.part * ctas;
}

// The best number of splits of this tile, as far as the workspace holds their sums.
inline int best_splits(const TileModel& t, const svdq_linear_params& p, const Workspace& ws, int sms) {
    const int64_t count = tiles(t, p.m, p.n), part_bytes = static_cast<int64_t>(t.bm) * t.bn * 4;
    if (count > kMaxSplitTiles) return 1;
    const int most = static_cast<int>(std::min<int64_t>(max_splits(p.k), ws.parts_bytes / (count * part_bytes)));
    const int steps = p.k / 64 + p.r / 16;
    int best = 1;
    for (int splits = 2; splits <= most; ++splits)
        if (cost(t, p.m, p.n, steps, splits, sms) < cost(t, p.m, p.n, steps, best, sms)) best = splits;
    return best;
}

inline Choice choose(const svdq_linear_params& p, const Workspace& ws, int sms) {
    constexpr int kFewTokens = 32;  // up to here two small tiles of M read the weight faster than a larger one
    if (p.m <= kFewTokens) return {TileKind::kSmall, best_splits(kSmallModel, p, ws, sms)};
    const int steps = p.k / 64 + p.r / 16, splits = best_splits(kMediumModel, p, ws, sms);
    if (cost(kLargeModel, p.m, p.n, steps, 1, sms) <= cost(kMediumModel, p.m, p.n, steps, splits, sms))
        return {TileKind::kLarge, 1};
    return {TileKind::kMedium, splits};
}

}  // namespace svdq::sm80
