// The kernels that make up kernel (a) of sm_90a, and their launchers. w4a8_quantize.cu chooses among them.
#pragma once

#include <cuda_runtime_api.h>

#include "svdq/svdq.h"

namespace svdq::sm90 {

// x_q, x_scale and t in one read of x: w4a8_quantize_once.cuh. R <= 32.
bool can_quantize_once(const svdq_linear_params& p);
cudaError_t launch_quantize_once(const svdq_linear_params& p, cudaStream_t stream);

// t alone: w4a8_lora_down.cuh. R > 0.
cudaError_t launch_lora_down(const svdq_linear_params& p, cudaStream_t stream);

// x_q and x_scale alone: w4a8_quantize_rows.cuh. With R > 0 right behind launch_lora_down of the same linear, beside which
// it runs.
cudaError_t launch_quantize_rows(const svdq_linear_params& p, cudaStream_t stream);

}  // namespace svdq::sm90
