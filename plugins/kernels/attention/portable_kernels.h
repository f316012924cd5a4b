// The compiled kernels of portable.cuh, and what they take.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace svdq::portable {

struct AttentionArgs {
    const uint8_t *q, *k, *v;               // [B, tokens, heads, D], 16 bit
    uint32_t q_stride, k_stride, v_stride;  // bytes from token to token
    const uint8_t* bias;                    // [B, keys] act dtype
    uint8_t* y[2];                          // [B, split, H, D] and [B, queries - split, H, D]
    int heads, heads_per_kv;
    int head_bytes;  // of D values
    int queries, keys;
    int split;         // queries before it go to y[0]
    int query_tiles;   // per head
    float scale_log2;  // of the logits, times log2(e)
    float bias_scale;  // 1 / scale
};

// A compiled size of heads; smaller ones run in it, with zeros behind.
struct AttentionRow {
    int head_size, queries, threads;
    size_t shared_bytes;
    void (*plain)(AttentionArgs);
    void (*bias)(AttentionArgs);  // adds to the logits
};
struct AttentionTable {
    const AttentionRow *first, *last;  // by size
    const AttentionRow* begin() const { return first; }
    const AttentionRow* end() const { return last; }
};

AttentionTable attention_f16();
AttentionTable attention_bf16();

}  // namespace svdq::portable
