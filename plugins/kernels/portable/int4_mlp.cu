#include "format_int4.cuh"
#include "mlp.cuh"

namespace svdq::portable {

template <class T>
static cudaError_t launch_as(const HiddenArgs& args, cudaStream_t stream) {
    constexpr int kFormat = SVDQ_FORMAT_INT4;
    return args.fc1.p.act_unsigned ? launch_gemm_quantize<kFormat, Int4<T, U4S4>, T>(args, stream)
                                   : launch_gemm_quantize<kFormat, Int4<T, S4S4>, T>(args, stream);
}

cudaError_t gemm_quantize_int4(const HiddenArgs& args, cudaStream_t stream) {
    return args.fc1.p.dtype == SVDQ_F16 ? launch_as<__half>(args, stream) : launch_as<__nv_bfloat16>(args, stream);
}

}  // namespace svdq::portable
