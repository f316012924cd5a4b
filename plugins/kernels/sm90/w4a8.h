// w4a8 linear on sm_90a (int8 wgmma): what the registry lists. Arguments were checked by the C API; see svdq.h.
#pragma once

#include "../linear.h"
#include "w4a8_layout.h"

namespace svdq::sm90 {

// False where the portable kernels have to do the whole linear.
inline bool can_run_w4a8(const svdq_linear_params& p) { return p.k <= kMaxQuantizeK; }

// x -> x_q, x_scale, t in the workspace.
cudaError_t quantize_w4a8(const LinearArgs& args, cudaStream_t stream);

// Workspace and weights -> y.
cudaError_t gemm_w4a8(const LinearArgs& args, cudaStream_t stream);

}  // namespace svdq::sm90
