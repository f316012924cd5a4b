// The one place that picks kernels by (format, device): registry.cpp has a row per format and architecture.
#pragma once

#include "hidden.h"
#include "linear.h"

namespace svdq {

// What an architecture offers for a format. A format's first row that fits a call is taken.
struct Kernels {
    int32_t format;
    int32_t min_sm, max_sm;  // compute capabilities, such as 89
    bool (*can_run)(const svdq_linear_params&);
    Workspace (*workspace)(int64_t m, int64_t n, int64_t k, int64_t r);
    Launcher quantize;            // x -> codes, scales, t
    Launcher gemm;                // codes, scales, t -> y
    const HiddenKernels* hidden;  // nullptr: none

    Workspace workspace_of(const svdq_linear_params& p) const { return workspace(p.m, p.n, p.k, p.r); }
};

// A range over the rows of a format; there is at least one.
struct KernelRange {
    const Kernels *first, *last;
    const Kernels* begin() const { return first; }
    const Kernels* end() const { return last; }
};
KernelRange kernels_of(int32_t format);

// Bytes of workspace that any kernel this library may pick needs. No CUDA call.
size_t workspace_bytes(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r);

// True if the library holds machine code for compute capability `sm` (89, 90, ...).
bool has_target(int32_t sm);

// True if the library holds machine code for this format on compute capability `sm` (89, 90, ...).
bool has_kernel(int32_t format, int32_t dtype, int32_t sm);

// Programmatic dependent launch: from there on.
constexpr bool can_overlap(int32_t sm) { return sm >= 90; }

// The kernels for a call on a device of compute capability `sm`; has_kernel() holds.
constexpr int32_t kPortableSm = 80;  // what runs there runs on every later one too
const Kernels& pick_kernels(const svdq_linear_params& p, int32_t sm);

}  // namespace svdq
