// The C API of two linears with an activation between them: checks on the host, then kernels/mlp.cpp.
#include "kernels/mlp.h"

#include "checks.h"
#include "kernels/registry.h"

namespace {

using namespace svdq::capi;

bool mlp_sizes_are_valid(const svdq_mlp_params& p) {
    const svdq_linear_params &a = p.fc1, &b = p.fc2;
    if (a.format != SVDQ_FORMAT_INT4 && a.format != SVDQ_FORMAT_NVFP4) return false;
    if (a.activation != SVDQ_ACT_GELU && a.activation != SVDQ_ACT_GELU_TANH && a.activation != SVDQ_ACT_GEGLU)
        return false;
    if (b.format != a.format || b.activation != SVDQ_ACT_NONE || b.m != a.m) return false;
    if (!sizes_are_valid(a.format, a.m, a.n, a.k, a.r) || !sizes_are_valid(b.format, b.m, b.n, b.k, b.r)) return false;
    return a.n == (a.activation == SVDQ_ACT_GEGLU ? 2 * b.k : b.k);
}

}  // namespace

extern "C" {

svdq_status svdq_mlp_workspace_bytes(const svdq_mlp_params* sizes, size_t* bytes) {
    if (sizes == nullptr || bytes == nullptr || !mlp_sizes_are_valid(*sizes)) return SVDQ_BAD_ARGUMENT;
    *bytes = svdq::mlp_workspace_bytes(*sizes);
    return SVDQ_OK;
}

svdq_status svdq_mlp(const svdq_mlp_params* p, void* stream) {
    if (p == nullptr || !mlp_sizes_are_valid(*p)) return SVDQ_BAD_ARGUMENT;
    if (!settings_are_valid(p->fc1) || !settings_are_valid(p->fc2) || p->fc1.dtype != p->fc2.dtype)
        return SVDQ_BAD_ARGUMENT;
    if (p->fc1.m == 0) return SVDQ_OK;
    if (!pointers_are_valid(p->fc1, true, false) || !pointers_are_valid(p->fc2, false, true)) return SVDQ_BAD_ARGUMENT;
    if (!is_device_pointer(p->workspace) || p->workspace_bytes < svdq::mlp_workspace_bytes(*p)) return SVDQ_WORKSPACE;

    int32_t sm = 0;
    const svdq_status status = current_sm(&sm);
    if (status != SVDQ_OK) return status;
    if (!svdq::has_kernel(p->fc1.format, p->fc1.dtype, sm)) return SVDQ_UNSUPPORTED;
    return cuda_status(svdq::run_mlp(*p, sm, static_cast<cudaStream_t>(stream)));
}

}  // extern "C"
