// The C API: checks on the host, then dispatch. No exception leaves, because none is thrown.
#include "svdq/svdq.h"

#include <cmath>
#include <cstdint>

#include "kernels/dispatch.h"
#include "svdq/contract.h"

namespace {

namespace contract = svdq::contract;

thread_local int32_t last_cuda_error = cudaSuccess;

svdq_status cuda_status(cudaError_t e) {
    if (e == cudaSuccess) return SVDQ_OK;
    last_cuda_error = e;
    return SVDQ_CUDA;
}

constexpr int32_t kMaxTokens = 1 << 30;          // tile row numbers stay in int32
constexpr int32_t kMaxFeatures = 1 << 24;        // far above any linear; keeps byte offsets in range

bool sizes_are_valid(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r) {
    if (format < SVDQ_FORMAT_INT4 || format > SVDQ_FORMAT_W4A16) return false;
    if (m < 0 || m > kMaxTokens) return false;
    if (n <= 0 || n % contract::kNMultiple != 0 || n > kMaxFeatures) return false;
    if (k <= 0 || k % contract::kKMultiple != 0 || k > kMaxFeatures) return false;
    if (k > contract::kFormats[format].max_k) return false;
    return r >= 0 && r % contract::kRMultiple == 0 && r <= contract::kRMax;
}

bool settings_are_valid(const svdq_linear_params& p) {
    if (!sizes_are_valid(p.format, p.m, p.n, p.k, p.r)) return false;
    if (p.activation < SVDQ_ACT_NONE || p.activation > SVDQ_ACT_GEGLU) return false;
    if (p.activation == SVDQ_ACT_GEGLU && p.n % (2 * contract::kNMultiple) != 0) return false;
    if (p.dtype != SVDQ_F16 && p.dtype != SVDQ_BF16) return false;
    if (p.act_unsigned != 0 && p.act_unsigned != 1) return false;
    if (p.act_unsigned == 1 && !contract::kFormats[p.format].has_unsigned) return false;
    return std::isfinite(p.act_shift);
}

bool is_device_pointer(const void* p) { return p != nullptr && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

bool pointers_are_valid(const svdq_linear_params& p) {
    const void* const always[] = {p.x, p.qweight, p.wscale, p.act_mul, p.bias, p.wscale2, p.y};
    for (const void* q : always)
        if (!is_device_pointer(q)) return false;
    return p.r == 0 || (is_device_pointer(p.lora_down) && is_device_pointer(p.lora_up));
}

// The compute capability of the current device, 0 on failure.
svdq_status current_sm(int32_t* sm) {
    int device = 0, major = 0, minor = 0;
    cudaError_t e = cudaGetDevice(&device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    if (e == cudaSuccess) e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    *sm = 10 * major + minor;
    return cuda_status(e);
}

enum Part { kQuantize = 1, kGemm = 2, kPortable = 4 };

svdq_status run(const svdq_linear_params* p, void* stream, int parts) {
    if (p == nullptr || !settings_are_valid(*p)) return SVDQ_BAD_ARGUMENT;
    if (p->m == 0) return SVDQ_OK;
    if (!pointers_are_valid(*p)) return SVDQ_BAD_ARGUMENT;
    if (!is_device_pointer(p->workspace)) return SVDQ_WORKSPACE;
    if (p->workspace_bytes < svdq::workspace_bytes(p->format, p->m, p->n, p->k, p->r)) return SVDQ_WORKSPACE;

    int32_t sm = 0;
    svdq_status status = current_sm(&sm);
    if (status != SVDQ_OK) return status;
    if (!svdq::has_kernel(p->format, p->dtype, sm)) return SVDQ_UNSUPPORTED;

    svdq::LinearArgs args{*p, svdq::workspace_layout(p->format, p->m, p->n, p->k, p->r)};
    args.overlap = (parts & kQuantize) && (parts & kGemm) && sm >= 90;  // programmatic dependent launch: from there on
    const svdq::LauncherPair launch = svdq::pick_launchers(args, parts & kPortable ? 80 : sm);
    const auto s = static_cast<cudaStream_t>(stream);
    if (parts & kQuantize) status = cuda_status(launch.quantize(args, s));
    if (status == SVDQ_OK && (parts & kGemm)) status = cuda_status(launch.gemm(args, s));
    return status;
}

}  // namespace

extern "C" {

svdq_status svdq_workspace_bytes(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r, size_t* bytes) {
    if (bytes == nullptr || !sizes_are_valid(format, m, n, k, r)) return SVDQ_BAD_ARGUMENT;
    *bytes = svdq::workspace_bytes(format, m, n, k, r);
    return SVDQ_OK;
}

svdq_status svdq_linear(const svdq_linear_params* p, void* stream) { return run(p, stream, kQuantize | kGemm); }
svdq_status svdq_linear_quantize(const svdq_linear_params* p, void* stream) { return run(p, stream, kQuantize); }
svdq_status svdq_linear_gemm(const svdq_linear_params* p, void* stream) { return run(p, stream, kGemm); }
svdq_status svdq_linear_portable(const svdq_linear_params* p, void* stream) {
    return run(p, stream, kQuantize | kGemm | kPortable);
}

int32_t svdq_supports(int32_t format, int32_t dtype, int32_t sm) { return svdq::has_kernel(format, dtype, sm) ? 1 : 0; }

const char* svdq_version(void) { return SVDQ_VERSION; }

const char* svdq_status_string(svdq_status s) {
    switch (s) {
        case SVDQ_OK: return "No error.";
        case SVDQ_BAD_ARGUMENT: return "A pointer, size or enum is out of range; see svdq.h for the rules.";
        case SVDQ_UNSUPPORTED: return "This library holds no kernel for this format on this device.";
        case SVDQ_WORKSPACE: return "The workspace is missing, misaligned or smaller than svdq_workspace_bytes().";
        case SVDQ_CUDA: return "A CUDA call failed; svdq_last_cuda_error() tells which error.";
    }
    return "Unknown status.";
}

int32_t svdq_last_cuda_error(void) { return last_cuda_error; }

}  // extern "C"
