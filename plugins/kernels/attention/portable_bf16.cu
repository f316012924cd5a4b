#include "portable_table.cuh"

namespace svdq::portable {

AttentionTable attention_bf16() { return attention_table<__nv_bfloat16>(); }

}  // namespace svdq::portable
