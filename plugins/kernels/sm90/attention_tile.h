// What the host and the kernel of attention.cuh share: arguments and sizes of a tile.
#pragma once

#include <cuda.h>
#include <stdint.h>

namespace svdq::sm90 {

struct AttentionArgs {
    CUtensorMap q, k, v;              // [B, tokens, heads, D], boxes of 64 columns
    CUtensorMap q_end, k_end, v_end;  // the columns behind the last 64, where D is no multiple
    const void* bias;                 // [B, keys] act dtype
    void* y[2];                       // [B, split, H, D] and [B, queries - split, H, D]
    int batch, heads, heads_per_kv, queries, keys;
    int split;         // queries before it go to y[0]
    int query_tiles;   // per head
    float scale_log2;  // of the logits, times log2(e)
    float bias_scale;  // 1 / scale
};

// Sizes of a tile: kWgs * 64 queries of a head by blocks of kKeys keys.
template <int kHeadSize, int kWarpgroups, int kBlock>
struct AttentionTile {
    static constexpr int kD = kHeadSize, kWgs = kWarpgroups, kKeys = kBlock;
    static constexpr int kPanels = kD / 64;
    static constexpr bool kEnd = kD % 64 != 0;
    static_assert(kD % 64 == 0 || kD % 64 == 8, "one more box of 16 columns, half of it zeros");
    static constexpr int kStages = 2;       // blocks of k, and of v, in shared memory
    static constexpr int kQueryStages = 2;  // tiles of q
    static constexpr int kThreads = 128 * (kWgs + 1);
    static constexpr int kRowBytes = kPanels * 128 + (kEnd ? 32 : 0);
    static constexpr int kQuerySlot = (64 * kRowBytes + 1023) / 1024 * 1024;  // of a warpgroup
    static constexpr int kKeySlot = (kKeys * kRowBytes + 1023) / 1024 * 1024;
    static constexpr int kSmem =
        1024 + kQueryStages * kWgs * kQuerySlot + 2 * kStages * kKeySlot + 16 * kQueryStages * kWgs + 32 * kStages;
    static constexpr int kProducerRegs = kWgs == 2 ? 24 : 32;
    static constexpr int kConsumerRegs = kWgs == 2 ? 240 : 160;
};

}  // namespace svdq::sm90
