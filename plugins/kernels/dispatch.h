// The one place that picks a kernel by (format, device).
#pragma once

#include "linear.h"
#include "sm80/launch.h"

namespace svdq {

struct LauncherPair {
    Launcher quantize;  // kernel (a): x -> codes, scales, t
    Launcher gemm;      // kernel (b): codes, scales, t -> y
};

// Bytes of workspace that any kernel this library may pick needs. No CUDA call.
size_t workspace_bytes(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r);

// True if the library holds machine code for this format on compute capability `sm` (89, 90, ...).
bool has_kernel(int32_t format, int32_t dtype, int32_t sm);

// Programmatic dependent launch: from there on.
constexpr bool can_overlap(int32_t sm) { return sm >= 90; }

// The launchers for a call on a device of compute capability `sm`; has_kernel() holds. Those for 80 run on every
// later one too.
LauncherPair pick_launchers(const LinearArgs& args, int32_t sm);

// For int4 and nvfp4: fc1's kernel (b) with fc2's kernel (a) in it, on every supported device.
using HiddenLauncher = cudaError_t (*)(const sm80::HiddenArgs&, cudaStream_t);
HiddenLauncher pick_hidden_launcher(int32_t format);

}  // namespace svdq
