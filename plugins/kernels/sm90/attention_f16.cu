#include "attention_table.cuh"

namespace svdq::sm90 {

AttentionTable attention_f16() { return attention_table<__half>(); }

}  // namespace svdq::sm90
