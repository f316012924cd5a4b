#include "format_int4.cuh"
#include "gemm.cuh"
#include "kernels.h"
#include "quantize.cuh"

namespace svdq::portable {

cudaError_t quantize_int4(const LinearArgs& args, cudaStream_t stream) {
    return launch_quantize<SVDQ_FORMAT_INT4>(args, stream);
}

template <class T>
static cudaError_t launch_as(const LinearArgs& args, cudaStream_t stream) {
    return args.p.act_unsigned ? launch_gemm<Int4<T, U4S4>, T>(args, stream)
                               : launch_gemm<Int4<T, S4S4>, T>(args, stream);
}

cudaError_t gemm_int4(const LinearArgs& args, cudaStream_t stream) {
    return args.p.dtype == SVDQ_F16 ? launch_as<__half>(args, stream) : launch_as<__nv_bfloat16>(args, stream);
}

}  // namespace svdq::portable
