// Two linears with an activation between them: their workspace and what runs. Host code.
#pragma once

#include "linear.h"

namespace svdq {

// The workspace of both linears' calls. The linears' own workspaces are one, which both use in turn.
//
//   hidden    [M, K of fc2]   act dtype: act(fc1(x))
//   linears                   struct Workspace of fc1, then of fc2
struct MlpWorkspace {
    size_t hidden = 0, linears = 0;  // byte offsets, multiples of 256
    size_t bytes = 0;
};

// Reads formats, activations and sizes.
MlpWorkspace mlp_workspace(const svdq_mlp_params& p);

// Every size and pointer has been validated, m > 0, has_kernel() holds for compute capability `sm`.
cudaError_t run_mlp(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream);

}  // namespace svdq
