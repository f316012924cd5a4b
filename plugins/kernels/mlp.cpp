#include "mlp.h"

#include <algorithm>

#include "dispatch.h"

namespace svdq {
namespace {

size_t bytes_of(const svdq_linear_params& p) { return workspace_bytes(p.format, p.m, p.n, p.k, p.r); }

cudaError_t run_linear(const svdq_linear_params& p, int32_t sm, cudaStream_t stream) {
    LinearArgs args{p, workspace_layout(p.format, p.m, p.n, p.k, p.r)};
    args.overlap = can_overlap(sm);
    const LauncherPair launch = pick_launchers(args, sm);
    const cudaError_t e = launch.quantize(args, stream);
    return e != cudaSuccess ? e : launch.gemm(args, stream);
}

}  // namespace

MlpWorkspace mlp_workspace(const svdq_mlp_params& p) {
    MlpWorkspace w;
    w.linears = align_workspace(int64_t{p.fc2.m} * p.fc2.k * 2);
    w.bytes = w.linears + std::max(bytes_of(p.fc1), bytes_of(p.fc2));
    return w;
}

cudaError_t run_mlp(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream) {
    const MlpWorkspace w = mlp_workspace(p);
    const auto base = static_cast<uint8_t*>(p.workspace);
    svdq_linear_params fc1 = p.fc1, fc2 = p.fc2;
    fc1.y = base + w.hidden, fc2.x = base + w.hidden;
    fc1.workspace = fc2.workspace = base + w.linears;
    const cudaError_t e = run_linear(fc1, sm, stream);
    return e != cudaSuccess ? e : run_linear(fc2, sm, stream);
}

}  // namespace svdq
