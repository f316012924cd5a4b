// The portable kernels (mma.sync, any sm_80+): two launchers per format.
#pragma once

#include "../linear.h"

namespace svdq::sm80 {

cudaError_t quantize_int4(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_w4a8(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_nvfp4(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_w4a16(const LinearArgs& args, cudaStream_t stream);

cudaError_t gemm_int4(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_w4a8(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_nvfp4(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_w4a16(const LinearArgs& args, cudaStream_t stream);

}  // namespace svdq::sm80
