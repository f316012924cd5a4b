#include "mlp.h"

#include <algorithm>

#include "dispatch.h"

namespace svdq {
namespace {

using sm80::TileKind;

Workspace layout(const svdq_linear_params& p, int32_t m) { return workspace_layout(p.format, m, p.n, p.k, p.r); }

// One of two ways: fc1's kernel (b) quantizes the hidden. Byte offsets, multiples of 256:
//
//   0        struct Workspace of fc1, without counters and parts: its K is not split
//   fc2      struct Workspace of fc2
//   t_parts  [N tiles of fc1][M][R of fc2] f32: sm80/mlp_epilogue.cuh. Where fc2's own parts are, which come later
struct Fused {
    size_t fc2, t_parts, bytes;

    Fused(const svdq_mlp_params& p, int32_t m, TileKind tile) {
        const Workspace second = layout(p.fc2, m);
        fc2 = layout(p.fc1, m).counters;
        t_parts = fc2 + second.parts;
        const size_t parts = align_workspace(sm80::hidden_tiles(p, tile) * m * p.fc2.r * 4);
        bytes = std::max(fc2 + second.bytes, t_parts + parts);
    }
};

// The other: two linears, one after the other.
//
//   0        hidden [M, K of fc2] act dtype
//   linears  struct Workspace of fc1, then of fc2
struct Chain {
    size_t linears, bytes;

    Chain(const svdq_mlp_params& p, int32_t m) {
        linears = align_workspace(int64_t{m} * p.fc2.k * 2);
        bytes = linears + std::max(layout(p.fc1, m).bytes, layout(p.fc2, m).bytes);
    }
};

LinearArgs linear_args(svdq_linear_params p, uint8_t* workspace, int32_t sm) {
    p.workspace = workspace;
    LinearArgs args{p, layout(p, p.m)};
    args.overlap = can_overlap(sm);
    return args;
}

cudaError_t run_fused(const svdq_mlp_params& p, TileKind tile, int32_t sm, cudaStream_t stream) {
    uint8_t* const workspace = static_cast<uint8_t*>(p.workspace);
    const Fused at(p, p.fc1.m, tile);
    sm80::HiddenArgs args = {};
    args.fc1 = linear_args(p.fc1, workspace, sm);
    args.fc1.ws.parts_bytes = 0;
    args.fc2 = linear_args(p.fc2, workspace + at.fc2, sm);
    args.tile = tile;
    args.t_parts = reinterpret_cast<float*>(workspace + at.t_parts);
    args.t_tiles = static_cast<int>(sm80::hidden_tiles(p, tile));
    cudaError_t e = pick_launchers(args.fc1, sm).quantize(args.fc1, stream);
    if (e == cudaSuccess) e = pick_hidden_launcher(p.fc1.format)(args, stream);
    return e != cudaSuccess ? e : pick_launchers(args.fc2, sm).gemm(args.fc2, stream);
}

cudaError_t run_linear(const LinearArgs& args, int32_t sm, cudaStream_t stream) {
    const LauncherPair launch = pick_launchers(args, sm);
    const cudaError_t e = launch.quantize(args, stream);
    return e != cudaSuccess ? e : launch.gemm(args, stream);
}

cudaError_t run_chain(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream) {
    uint8_t* const workspace = static_cast<uint8_t*>(p.workspace);
    const Chain at(p, p.fc1.m);
    svdq_linear_params fc1 = p.fc1, fc2 = p.fc2;
    fc1.y = workspace;
    fc2.x = workspace;
    const cudaError_t e = run_linear(linear_args(fc1, workspace + at.linears, sm), sm, stream);
    return e != cudaSuccess ? e : run_linear(linear_args(fc2, workspace + at.linears, sm), sm, stream);
}

}  // namespace

size_t mlp_workspace_bytes(const svdq_mlp_params& p) {
    const int32_t m = p.fc1.m;
    const bool large = sm80::can_fuse(p, TileKind::kLarge);
    const int32_t few = large ? std::min(m, sm80::kAlwaysFusedTokens - 1) : m;  // tokens of a call without that tile
    size_t bytes = Chain(p, few).bytes;
    if (sm80::can_fuse(p, TileKind::kMedium)) bytes = std::max(bytes, Fused(p, few, TileKind::kMedium).bytes);
    if (large) bytes = std::max(bytes, Fused(p, m, TileKind::kLarge).bytes);
    return bytes;
}

cudaError_t run_mlp(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream) {
    int sms = 0;
    const cudaError_t e = multiprocessors(&sms);
    if (e != cudaSuccess) return e;
    const auto tile = sm80::fused_tile(p, layout(p.fc1, p.fc1.m), sms);
    return tile ? run_fused(p, *tile, sm, stream) : run_chain(p, sm, stream);
}

}  // namespace svdq
