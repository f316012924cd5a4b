#include "attention_table.cuh"

namespace svdq::sm90 {

AttentionTable attention_bf16() { return attention_table<__nv_bfloat16>(); }

}  // namespace svdq::sm90
