// The compiled kernels of attention.cuh.
#pragma once

#include <stdint.h>

#include "attention_tile.h"

namespace svdq::sm90 {

// A tile that is compiled, and how many of one row's cycles a block of keys takes in it, against the others of its D.
struct AttentionRow {
    int head_size, wgs, keys;
    int smem;
    float cost;  // per query and key
    void (*plain)(AttentionArgs);
    void (*bias)(AttentionArgs);  // adds to the logits
};
struct AttentionTable {
    const AttentionRow *first, *last;
    const AttentionRow* begin() const { return first; }
    const AttentionRow* end() const { return last; }
};

AttentionTable attention_f16();
AttentionTable attention_bf16();

}  // namespace svdq::sm90
