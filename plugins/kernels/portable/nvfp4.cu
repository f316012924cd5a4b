#include "format_nvfp4.cuh"
#include "gemm.cuh"
#include "kernels.h"
#include "quantize.cuh"

namespace svdq::portable {

cudaError_t quantize_nvfp4(const LinearArgs& args, cudaStream_t stream) {
    return launch_quantize<SVDQ_FORMAT_NVFP4>(args, stream);
}

cudaError_t gemm_nvfp4(const LinearArgs& args, cudaStream_t stream) {
    return args.p.dtype == SVDQ_F16 ? launch_gemm<NVFP4, __half>(args, stream)
                                    : launch_gemm<NVFP4, __nv_bfloat16>(args, stream);
}

}  // namespace svdq::portable
