// What every launcher takes, and where the intermediate results lie. Host code; no CUDA call.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "svdq/contract.h"
#include "svdq/svdq.h"

namespace svdq {

// The workspace, which quantize writes and gemm reads. How large its parts are, and in which order codes and scales
// lie, each family of kernels says itself: portable/workspace.h, sm90/w4a8_layout.h.
//
//   codes            of x^, 4 or 8 bits each (w4a16: x^ itself)
//   scales           of codes, per group or per token
//   t                [M, R] act dtype: x . lora_down^T
//   counters, parts  of tiles whose K is split
struct Workspace {
    size_t codes = 0, scales = 0, t = 0, counters = 0, parts = 0;  // byte offsets, multiples of 256
    size_t bytes = 0;
    int64_t parts_bytes = 0;  // 0: K is never split
    int64_t m_pad = 0;        // rows of a group's scales, where they are per group
};

constexpr int64_t kWorkspaceAlignment = 256;

// One checked call: every size and pointer has been validated, m > 0.
struct LinearArgs {
    svdq_linear_params p;
    Workspace ws;  // as the kernels that are called lay it out
    // The call launches quantize and gemm, and the device knows programmatic dependent launch: a kernel may be launched
    // to start beside the one before it. It then waits before it reads or writes what that one may write or read.
    bool overlap = false;

    uint8_t* codes() const { return static_cast<uint8_t*>(p.workspace) + ws.codes; }
    uint8_t* scales() const { return static_cast<uint8_t*>(p.workspace) + ws.scales; }
    uint8_t* t() const { return static_cast<uint8_t*>(p.workspace) + ws.t; }
    float* parts() const { return reinterpret_cast<float*>(static_cast<uint8_t*>(p.workspace) + ws.parts); }
    // nullptr where K is never split.
    uint32_t* counters() const {
        return ws.parts_bytes ? reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(p.workspace) + ws.counters) : nullptr;
    }
    // What each sum goes through, or each gate.
    svdq_activation function() const { return contract::kActivations[p.activation].function; }
    int32_t n_out() const { return p.n / contract::kActivations[p.activation].rows_per_feature; }
    bool gated() const { return n_out() != p.n; }
};

// Enqueues work on the stream and returns the first error; reads nothing back.
using Launcher = cudaError_t (*)(const LinearArgs&, cudaStream_t);

}  // namespace svdq
