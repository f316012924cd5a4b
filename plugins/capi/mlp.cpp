// The C API of two linears with an activation between them: checks on the host, then kernels/mlp.cpp.
#include "kernels/mlp.h"

#include <algorithm>

#include "checks.h"
#include "kernels/registry.h"

namespace {

using namespace svdq::capi;

// Whether the contract has these two linears as one op.
bool is_op(const svdq_linear_params& a, const svdq_linear_params& b) {
    const auto& ops = svdq::contract::kOps;
    return std::any_of(ops.begin(), ops.end(), [&](const svdq::contract::OpRow& op) {
        return op.num_linears == 2 && op.format == a.format && op.format == b.format &&
               op.linears[0].activation == a.activation && op.linears[1].activation == b.activation;
    });
}

bool mlp_sizes_are_valid(const svdq_mlp_params& p) {
    const svdq_linear_params &a = p.fc1, &b = p.fc2;
    if (!is_op(a, b) || b.m != a.m) return false;
    if (!sizes_are_valid(a.format, a.m, a.n, a.k, a.r) || !sizes_are_valid(b.format, b.m, b.n, b.k, b.r)) return false;
    return a.n == svdq::contract::kActivations[a.activation].rows_per_feature * b.k;
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
