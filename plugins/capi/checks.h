// What the C API checks before any kernel is picked. Host code; the last function alone makes CUDA calls.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>

#include "svdq/contract.h"
#include "svdq/svdq.h"

namespace svdq::capi {

inline thread_local int32_t last_cuda_error = cudaSuccess;

inline svdq_status cuda_status(cudaError_t e) {
    if (e == cudaSuccess) return SVDQ_OK;
    last_cuda_error = e;
    return SVDQ_CUDA;
}

constexpr int32_t kMaxTokens = 1 << 30;    // tile row numbers stay in int32
constexpr int32_t kMaxFeatures = 1 << 24;  // far above any linear; keeps byte offsets in range

inline bool sizes_are_valid(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r) {
    if (format < SVDQ_FORMAT_INT4 || format > SVDQ_FORMAT_W4A16) return false;
    if (m < 0 || m > kMaxTokens) return false;
    if (n <= 0 || n % contract::kNMultiple != 0 || n > kMaxFeatures) return false;
    if (k <= 0 || k % contract::kKMultiple != 0 || k > kMaxFeatures) return false;
    if (k > contract::kFormats[format].max_k) return false;
    return r >= 0 && r % contract::kRMultiple == 0 && r <= contract::kRMax;
}

inline bool settings_are_valid(const svdq_linear_params& p) {
    if (!sizes_are_valid(p.format, p.m, p.n, p.k, p.r)) return false;
    if (p.activation < 0 || static_cast<size_t>(p.activation) >= contract::kActivations.size()) return false;
    if (p.n % (contract::kNMultiple * contract::kActivations[p.activation].rows_per_feature) != 0) return false;
    if (p.dtype != SVDQ_F16 && p.dtype != SVDQ_BF16) return false;
    if (p.act_unsigned != 0 && p.act_unsigned != 1) return false;
    if (p.act_unsigned == 1 && !contract::kFormats[p.format].has_unsigned) return false;
    return std::isfinite(p.act_shift);
}

inline bool is_device_pointer(const void* p) { return p != nullptr && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// `x` false: the input comes from elsewhere; `y` false: the output goes there.
inline bool pointers_are_valid(const svdq_linear_params& p, bool x = true, bool y = true) {
    const void* const always[] = {p.qweight, p.wscale, p.act_mul, p.bias, p.wscale2};
    for (const void* q : always)
        if (!is_device_pointer(q)) return false;
    if ((x && !is_device_pointer(p.x)) || (y && !is_device_pointer(p.y))) return false;
    return p.r == 0 || (is_device_pointer(p.lora_down) && is_device_pointer(p.lora_up));
}

// The compute capability of the current device, 0 on failure.
inline svdq_status current_sm(int32_t* sm) {
    int device = 0, major = 0, minor = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *sm = 10 * major + minor;
    return cuda_status(e);
}

}  // namespace svdq::capi
