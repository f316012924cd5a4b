// The portable kernels (mma.sync, any sm_80+): two launchers per format, and one for the middle of an MLP.
#pragma once

#include "../linear.h"
#include "mlp_choice.h"

namespace svdq::portable {

cudaError_t quantize_int4(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_w4a8(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_nvfp4(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_w4a16(const LinearArgs& args, cudaStream_t stream);

cudaError_t gemm_int4(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_w4a8(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_nvfp4(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_w4a16(const LinearArgs& args, cudaStream_t stream);

cudaError_t gemm_quantize_int4(const HiddenArgs& args, cudaStream_t stream);
cudaError_t gemm_quantize_nvfp4(const HiddenArgs& args, cudaStream_t stream);

inline constexpr HiddenKernels kHiddenInt4 = {kNumTiles, choose_hidden, hidden_tokens, hidden_parts,
                                              gemm_quantize_int4};
inline constexpr HiddenKernels kHiddenNvfp4 = {kNumTiles, choose_hidden, hidden_tokens, hidden_parts,
                                               gemm_quantize_nvfp4};

}  // namespace svdq::portable
