// The portable kernels (mma.sync, any sm_80+): two launchers per format, and one for the middle of an MLP.
#pragma once

#include "mlp_choice.h"

namespace svdq::sm80 {

cudaError_t quantize_int4(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_w4a8(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_nvfp4(const LinearArgs& args, cudaStream_t stream);
cudaError_t quantize_w4a16(const LinearArgs& args, cudaStream_t stream);

cudaError_t gemm_int4(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_w4a8(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_nvfp4(const LinearArgs& args, cudaStream_t stream);
cudaError_t gemm_w4a16(const LinearArgs& args, cudaStream_t stream);

// fc1's kernel (b) and fc2's kernel (a) in one: codes, scales, t of fc1 -> those of fc2.
struct HiddenArgs {
    LinearArgs fc1, fc2;  // fc1's y and fc2's x are not used
    TileKind tile;        // fused_tile()
    float* t_parts;       // [t_tiles][M][R of fc2]
    int t_tiles;          // hidden_tiles()
};
cudaError_t gemm_quantize_int4(const HiddenArgs& args, cudaStream_t stream);
cudaError_t gemm_quantize_nvfp4(const HiddenArgs& args, cudaStream_t stream);

}  // namespace svdq::sm80
