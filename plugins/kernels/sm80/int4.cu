#include "format_int4.cuh"
#include "gemm.cuh"
#include "launch.h"
#include "quantize.cuh"

namespace svdq::sm80 {

cudaError_t quantize_int4(const LinearArgs& args, cudaStream_t stream) {
    return launch_quantize<SVDQ_FORMAT_INT4>(args, stream);
}

cudaError_t gemm_int4(const LinearArgs& args, cudaStream_t stream) {
    if (args.p.dtype == SVDQ_F16)
        return args.p.act_unsigned ? launch_gemm<Int4<__half, true>, __half>(args, stream)
                                   : launch_gemm<Int4<__half, false>, __half>(args, stream);
    return args.p.act_unsigned ? launch_gemm<Int4<__nv_bfloat16, true>, __nv_bfloat16>(args, stream)
                               : launch_gemm<Int4<__nv_bfloat16, false>, __nv_bfloat16>(args, stream);
}

}  // namespace svdq::sm80
