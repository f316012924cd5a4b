#include "mlp.h"

#include <algorithm>

#include "common/device.h"
#include "common/sizes.h"
#include "registry.h"

namespace svdq {
namespace {

// One of two ways: fc1's gemm quantizes the hidden. Byte offsets, multiples of 256:
//
//   0        struct Workspace of fc1, without counters and parts: its K is not split
//   fc2      struct Workspace of fc2
//   t_parts  [parts of t][M][R of fc2] f32: HiddenArgs. Where fc2's own parts are, which come later
struct Fused {
    Workspace first, second;
    size_t fc2, t_parts, bytes;

    Fused(const Kernels& kernels, const svdq_mlp_params& p, int32_t m, int tile)
        : first(kernels.workspace(m, p.fc1.n, p.fc1.k, p.fc1.r)),
          second(kernels.workspace(m, p.fc2.n, p.fc2.k, p.fc2.r)) {
        fc2 = first.counters;
        t_parts = fc2 + second.parts;
        const int64_t parts = kernels.hidden->t_parts(p, tile) * m * p.fc2.r * 4;
        bytes = std::max(fc2 + second.bytes, t_parts + align_up(parts, kWorkspaceAlignment));
    }
};

// The other: two linears, one after the other.
//
//   0        hidden [M, K of fc2] act dtype
//   linears  struct Workspace of fc1, then of fc2
struct Chain {
    size_t linears, bytes;

    Chain(const svdq_mlp_params& p, int32_t m) {
        const auto of = [&](const svdq_linear_params& l) { return workspace_bytes(l.format, m, l.n, l.k, l.r); };
        linears = align_up(int64_t{m} * p.fc2.k * 2, kWorkspaceAlignment);
        bytes = linears + std::max(of(p.fc1), of(p.fc2));
    }
};

LinearArgs linear_args(svdq_linear_params p, const Workspace& ws, uint8_t* workspace, int32_t sm) {
    p.workspace = workspace;
    return {p, ws, can_overlap(sm)};
}

cudaError_t run_fused(const Kernels& kernels, const svdq_mlp_params& p, int tile, int32_t sm, cudaStream_t stream) {
    uint8_t* const workspace = static_cast<uint8_t*>(p.workspace);
    const Fused at(kernels, p, p.fc1.m, tile);
    HiddenArgs args = {};
    args.fc1 = linear_args(p.fc1, at.first, workspace, sm);
    args.fc1.ws.parts_bytes = 0;
    args.fc2 = linear_args(p.fc2, at.second, workspace + at.fc2, sm);
    args.tile = tile;
    args.t_parts = reinterpret_cast<float*>(workspace + at.t_parts);
    cudaError_t e = kernels.quantize(args.fc1, stream);
    if (e == cudaSuccess) e = kernels.hidden->launch(args, stream);
    return e != cudaSuccess ? e : kernels.gemm(args.fc2, stream);
}

cudaError_t run_linear(const svdq_linear_params& p, uint8_t* workspace, int32_t sm, cudaStream_t stream) {
    const Kernels& kernels = pick_kernels(p, sm);
    const LinearArgs args = linear_args(p, kernels.workspace_of(p), workspace, sm);
    const cudaError_t e = kernels.quantize(args, stream);
    return e != cudaSuccess ? e : kernels.gemm(args, stream);
}

cudaError_t run_chain(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream) {
    uint8_t* const workspace = static_cast<uint8_t*>(p.workspace);
    const Chain at(p, p.fc1.m);
    svdq_linear_params fc1 = p.fc1, fc2 = p.fc2;
    fc1.y = workspace;
    fc2.x = workspace;
    const cudaError_t e = run_linear(fc1, workspace + at.linears, sm, stream);
    return e != cudaSuccess ? e : run_linear(fc2, workspace + at.linears, sm, stream);
}

}  // namespace

size_t mlp_workspace_bytes(const svdq_mlp_params& p) {
    size_t bytes = 0;
    for (const Kernels& kernels : kernels_of(p.fc1.format)) {
        const HiddenKernels* const hidden = kernels.hidden;
        bytes = std::max(bytes, Chain(p, hidden ? hidden->tokens(p, kNoTile) : p.fc1.m).bytes);
        for (int tile = 0; hidden && tile < hidden->tiles; ++tile)
            if (hidden->tokens(p, tile) > 0)
                bytes = std::max(bytes, Fused(kernels, p, hidden->tokens(p, tile), tile).bytes);
    }
    return bytes;
}

cudaError_t run_mlp(const svdq_mlp_params& p, int32_t sm, cudaStream_t stream) {
    const Kernels& kernels = pick_kernels(p.fc1, sm);
    if (!kernels.hidden || &pick_kernels(p.fc2, sm) != &kernels) return run_chain(p, sm, stream);
    int sms = 0;
    if (const cudaError_t e = multiprocessors(&sms); e != cudaSuccess) return e;
    const int tile = kernels.hidden->choose(p, kernels.workspace_of(p.fc1), sms);
    return tile == kNoTile ? run_chain(p, sm, stream) : run_fused(kernels, p, tile, sm, stream);
}

}  // namespace svdq
