// Two linears with an activation between them: what runs, and its workspace. Host code.
#pragma once

#include "linear.h"

namespace svdq {

// Bytes for a call with these sizes or with fewer tokens. Reads formats, activations and sizes; no CUDA call.
size_t mlp_workspace_bytes(const svdq_mlp_params& p);

// Every size and pointer has been validated, m > 0, has_kernel() holds for compute capability `sm`.
cudaError_t run_mlp(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream);

}  // namespace svdq
