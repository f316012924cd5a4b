// The kernels that make up quantize_w4a8 of sm_90a, and their launchers. w4a8_quantize.cu chooses among them.
#pragma once

#include "../linear.h"

namespace svdq::sm90 {

// x_q, x_scale and t in one read of x: w4a8_quantize_once.cuh. R <= 32.
bool can_quantize_once(const svdq_linear_params& p);
cudaError_t quantize_once(const LinearArgs& args, cudaStream_t stream);

// t alone: w4a8_lora_down.cuh. R > 0.
cudaError_t lora_down(const LinearArgs& args, cudaStream_t stream);

// x_q and x_scale alone: w4a8_quantize_rows.cuh. With R > 0 right after lora_down() of the same linear, beside which
// it runs.
cudaError_t quantize_rows(const LinearArgs& args, cudaStream_t stream);

}  // namespace svdq::sm90
