#include "w4a8_gemm_table.cuh"

namespace svdq::sm90 {
CompiledTile gemm_w4a8_bf16(int row) {
    return compiled_of<__nv_bfloat16>(row, std::make_integer_sequence<int, kNumTiles>());
}
}  // namespace svdq::sm90
