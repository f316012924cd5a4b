#include "format_w4a8.cuh"
#include "gemm.cuh"
#include "kernels.h"
#include "quantize.cuh"

namespace svdq::portable {

cudaError_t quantize_w4a8(const LinearArgs& args, cudaStream_t stream) {
    return launch_quantize<SVDQ_FORMAT_W4A8>(args, stream);
}

cudaError_t gemm_w4a8(const LinearArgs& args, cudaStream_t stream) {
    return args.p.dtype == SVDQ_F16 ? launch_gemm<W4A8, __half>(args, stream)
                                    : launch_gemm<W4A8, __nv_bfloat16>(args, stream);
}

}  // namespace svdq::portable
