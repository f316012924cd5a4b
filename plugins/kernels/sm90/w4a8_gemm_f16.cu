#include "w4a8_gemm_table.cuh"

namespace svdq::sm90 {
CompiledTile gemm_w4a8_f16(int row) { return compiled_of<__half>(row, std::make_integer_sequence<int, kNumTiles>()); }
}  // namespace svdq::sm90
