#include "format_nvfp4.cuh"
#include "mlp.cuh"

namespace svdq::portable {

cudaError_t gemm_quantize_nvfp4(const HiddenArgs& args, cudaStream_t stream) {
    constexpr int kFormat = SVDQ_FORMAT_NVFP4;
    return args.fc1.p.dtype == SVDQ_F16 ? launch_gemm_quantize<kFormat, NVFP4, __half>(args, stream)
                                        : launch_gemm_quantize<kFormat, NVFP4, __nv_bfloat16>(args, stream);
}

}  // namespace svdq::portable
