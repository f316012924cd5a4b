#include "portable_table.cuh"

namespace svdq::portable {

AttentionTable attention_f16() { return attention_table<__half>(); }

}  // namespace svdq::portable
