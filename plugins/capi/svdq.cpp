// The C API of one linear: checks on the host, then the registry. No exception leaves, because none is thrown.
#include "svdq/svdq.h"

#include "checks.h"
#include "kernels/registry.h"

namespace {

using namespace svdq::capi;

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

    const svdq::Kernels& kernels = svdq::pick_kernels(*p, parts & kPortable ? svdq::kPortableSm : sm);
    const bool both = (parts & kQuantize) && (parts & kGemm);
    const svdq::LinearArgs args = {*p, kernels.workspace_of(*p), both && svdq::can_overlap(sm)};
    const auto s = static_cast<cudaStream_t>(stream);
    if (parts & kQuantize) status = cuda_status(kernels.quantize(args, s));
    if (status == SVDQ_OK && (parts & kGemm)) status = cuda_status(kernels.gemm(args, s));
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
