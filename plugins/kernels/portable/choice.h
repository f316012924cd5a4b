// Which tile gemm takes, and into how many parts it splits K. Host code.
//
// A model of the busiest multiprocessor's time, in steps (64 elements of K) of one large CTA: CTAs that share a
// multiprocessor hide each other's latencies, so a few small ones take no longer than one. A part of a split
// tile is written and read once more, through the L2.
#pragma once

#include <algorithm>

#include "tiles.h"
#include "workspace.h"

namespace svdq::portable {

struct Choice {
    int tile;  // row of kTiles
    int splits;
};

constexpr double kCountingIn = 3.0;  // steps: fences and the counter

inline int64_t tiles(const TileRow& t, int64_t m, int64_t n) { return ceil_div(m, t.bm) * ceil_div(n, t.bn); }

inline double cost(const TileRow& t, int64_t m, int64_t n, int steps, int splits, int sms) {
    const double ctas = static_cast<double>(ceil_div(tiles(t, m, n) * splits, sms));  // on the busiest
    const double product = (steps + splits - 1) / splits * std::max(t.alone, t.busy * ctas);
    return splits == 1 ? product : product + kCountingIn + t.part * ctas;
}

// The best number of splits of this tile, as far as the workspace holds their sums.
inline int best_splits(const TileRow& t, const svdq_linear_params& p, int steps, const Workspace& ws, int sms) {
    const int64_t count = tiles(t, p.m, p.n), part_bytes = static_cast<int64_t>(t.bm) * t.bn * 4;
    if (!can_split(t.bm) || count > kMaxSplitTiles) return 1;
    const int most = static_cast<int>(std::min<int64_t>(max_splits(p.k), ws.parts_bytes / (count * part_bytes)));
    int best = 1;
    for (int splits = 2; splits <= most; ++splits)
        if (cost(t, p.m, p.n, steps, splits, sms) < cost(t, p.m, p.n, steps, best, sms)) best = splits;
    return best;
}

// The cheapest; of equals the larger.
inline Choice choose(const svdq_linear_params& p, const Workspace& ws, int sms) {
    const int steps = p.k / 64 + p.r / 16;
    Choice best = {kNumTiles - 1, 1};
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < kNumTiles; ++i) {
        const TileRow& t = kTiles[i];
        if (p.m < t.min_tokens || p.m > t.max_tokens) continue;
        const int splits = best_splits(t, p, steps, ws, sms);
        const double own = cost(t, p.m, p.n, steps, splits, sms);
        if (own > least) continue;
        best = {i, splits};
        least = own;
    }
    return best;
}

}  // namespace svdq::portable
