// Two linears with an activation between them: their workspace and what runs. Host code.
#pragma once

#include "linear.h"

namespace svdq {

// The workspace, in one of two ways, as byte offsets, multiples of 256:
//
//   fused   fc1, fc2    struct Workspace of each
//           t_parts     [N tiles of fc1][M][R of fc2] f32: sm80/mlp_epilogue.cuh
//   chain   hidden      [M, K of fc2] act dtype: act(fc1(x))
//           linears     struct Workspace of fc1, then of fc2
struct MlpWorkspace {
    size_t fc1 = 0, fc2 = 0, t_parts = 0;
    size_t hidden = 0, linears = 0;
    size_t bytes = 0;  // for any way that a call with these tokens or fewer may go
};

// Reads formats, activations and sizes. No CUDA call.
MlpWorkspace mlp_workspace(const svdq_mlp_params& p);

// Every size and pointer has been validated, m > 0, has_kernel() holds for compute capability `sm`.
cudaError_t run_mlp(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream);

}  // namespace svdq
