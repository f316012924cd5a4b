// w4a8 linear on sm_90a (int8 wgmma): what dispatch calls. Arguments were checked by the C API; see svdq.h.
#pragma once

#include <cuda_runtime_api.h>

#include "svdq/svdq.h"

namespace svdq::sm90 {

// Bytes of workspace for sizes up to (m, n, k, r). No CUDA call.
size_t workspace_bytes_w4a8(int m, int n, int k, int r);

// False where the portable kernels have to do the whole linear (K > 32768, or a pointer or size TMA cannot
// take).
bool can_run_w4a8(const svdq_linear_params& p);

// Kernel (a): x -> x_q, x_scale, t in the workspace.
cudaError_t launch_quantize_w4a8(const svdq_linear_params& p, cudaStream_t stream);

// Kernel (b): workspace and weights -> y.
cudaError_t launch_gemm_w4a8(const svdq_linear_params& p, cudaStream_t stream);

}  // namespace svdq::sm90
