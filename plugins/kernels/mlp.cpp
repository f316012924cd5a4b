#include "mlp.h"

#include <algorithm>

#include "dispatch.h"

namespace svdq {
namespace {

using sm80::TileKind;

size_t bytes_of(const svdq_linear_params& p, int32_t m) { return workspace_bytes(p.format, m, p.n, p.k, p.r); }

LinearArgs linear_args(svdq_linear_params p, void* workspace, int32_t sm) {
    p.workspace = workspace;
    LinearArgs args{p, workspace_layout(p.format, p.m, p.n, p.k, p.r)};
    args.overlap = can_overlap(sm);
    return args;
}

cudaError_t run_linear(const LinearArgs& args, int32_t sm, cudaStream_t stream) {
    const LauncherPair launch = pick_launchers(args, sm);
    const cudaError_t e = launch.quantize(args, stream);
    return e != cudaSuccess ? e : launch.gemm(args, stream);
}

cudaError_t run_fused(const sm80::HiddenArgs& args, int32_t sm, cudaStream_t stream) {
    cudaError_t e = pick_launchers(args.fc1, sm).quantize(args.fc1, stream);
    if (e == cudaSuccess) e = pick_hidden_launcher(args.fc1.p.format)(args, stream);
    return e != cudaSuccess ? e : pick_launchers(args.fc2, sm).gemm(args.fc2, stream);
}

}  // namespace

MlpWorkspace mlp_workspace(const svdq_mlp_params& p) {
    const int32_t m = p.fc1.m;
    // Tokens of a call that takes anything but the fused large tile, at most.
    const int32_t few = sm80::can_fuse(p, TileKind::kLarge) ? std::min(m, sm80::kAlwaysFusedTokens - 1) : m;
    const auto parts = [&](int32_t tokens, TileKind tile) {
        return sm80::can_fuse(p, tile) ? align_workspace(sm80::hidden_tiles(p, tile) * tokens * p.fc2.r * 4) : 0;
    };
    MlpWorkspace w;
    w.fc2 = bytes_of(p.fc1, m);
    w.t_parts = w.fc2 + bytes_of(p.fc2, m);
    w.linears = align_workspace(int64_t{few} * p.fc2.k * 2);
    const size_t chain = w.linears + std::max(bytes_of(p.fc1, few), bytes_of(p.fc2, few));
    const size_t large = w.t_parts + parts(m, TileKind::kLarge);
    const size_t medium = bytes_of(p.fc1, few) + bytes_of(p.fc2, few) + parts(few, TileKind::kMedium);
    w.bytes = std::max({chain, sm80::can_fuse(p, TileKind::kLarge) ? large : 0,
                        sm80::can_fuse(p, TileKind::kMedium) ? medium : 0});
    return w;
}

cudaError_t run_mlp(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream) {
    int sms = 0;
    const cudaError_t failed = sm80::multiprocessors(&sms);
    if (failed != cudaSuccess) return failed;
    const MlpWorkspace w = mlp_workspace(p);
    uint8_t* const base = static_cast<uint8_t*>(p.workspace);

    const LinearArgs fc1 = linear_args(p.fc1, base + w.fc1, sm);
    if (const auto tile = sm80::fused_tile(p, fc1.ws, sms)) {
        const LinearArgs fc2 = linear_args(p.fc2, base + w.fc2, sm);
        float* const parts = reinterpret_cast<float*>(base + w.t_parts);
        return run_fused({fc1, fc2, *tile, parts, static_cast<int>(sm80::hidden_tiles(p, *tile))}, sm, stream);
    }
    svdq_linear_params first = p.fc1, second = p.fc2;
    first.y = base + w.hidden, second.x = first.y;
    const cudaError_t e = run_linear(linear_args(first, base + w.linears, sm), sm, stream);
    return e != cudaSuccess ? e : run_linear(linear_args(second, base + w.linears, sm), sm, stream);
}

}  // namespace svdq
