// The middle of an MLP in one kernel: fc1's gemm, which quantizes the hidden as fc2's quantize would. What an
// architecture that has one says of it. Host code.
#pragma once

#include "linear.h"

namespace svdq {

constexpr int kNoTile = -1;  // two linears, one after the other

// Codes, scales, t of fc1 -> those of fc2.
struct HiddenArgs {
    LinearArgs fc1, fc2;  // fc1's y and fc2's x are not used
    int tile;
    float* t_parts;  // [t_parts()][M][R of fc2], of fc2's t
};

struct HiddenKernels {
    int tiles;  // numbered from 0
    // The tile for a call, or kNoTile. fc1: its workspace; sms: multiprocessors of the device.
    int (*choose)(const svdq_mlp_params&, const Workspace& fc1, int sms);
    // The most tokens, up to fc1's m, of a call for which choose() may give `tile` or kNoTile; 0: never.
    int32_t (*tokens)(const svdq_mlp_params&, int tile);
    // Parts of fc2's t that a tile leaves.
    int64_t (*t_parts)(const svdq_mlp_params&, int tile);
    cudaError_t (*launch)(const HiddenArgs&, cudaStream_t);
};

}  // namespace svdq
