#include "w4a8_gemm_table.cuh"

namespace svdq::sm90 {
GemmKernel gemm_w4a8_bf16(int bn, ActClass act) { return pick_kernel<__nv_bfloat16>(bn, act); }
}  // namespace svdq::sm90
