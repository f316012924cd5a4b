// Chooses the tile of gemm_w4a8 for a shape and launches it.
#include <algorithm>

#include "../common/device.h"
#include "../common/launch.h"
#include "tensor_map.h"
#include "w4a8.h"
#include "w4a8_gemm_table.cuh"

namespace svdq::sm90 {
namespace {

int64_t tiles_along_n(const TileRow& t, int n) { return ceil_div(n, 64 * t.wgs); }

// The tile with the fewest cycles on the busiest SM.
int choose(const LinearArgs& args, int sms) {
    const svdq_linear_params& p = args.p;
    const auto cycles = [&](const TileRow& t) {
        const int64_t waves = ceil_div(tiles_along_n(t, p.n) * ceil_div(p.m, t.bn), sms);
        const int low_rank = (p.r - 32) / 16 * (t.wgs * t.bn / 2);
        return waves * (ceil_div(p.k, kBlockK) * t.stage + t.end + low_rank);
    };
    const auto best = std::min_element(std::begin(kTiles), std::end(kTiles),
                                       [&](const TileRow& a, const TileRow& b) { return cycles(a) < cycles(b); });
    return static_cast<int>(best - kTiles);
}

}  // namespace

cudaError_t gemm_w4a8(const LinearArgs& args, cudaStream_t stream) {
    const svdq_linear_params& p = args.p;
    int sms = 0;
    if (const cudaError_t e = multiprocessors(&sms); e != cudaSuccess) return e;
    const int row = choose(args, sms);
    const TileRow& tile = kTiles[row];
    const CompiledTile compiled = p.dtype == SVDQ_F16 ? gemm_w4a8_f16(row) : gemm_w4a8_bf16(row);

    W4A8GemmArgs a = {};
    const int64_t m = p.m, n = p.n, k = p.k, r = p.r, k_padded = align_up(k, kBlockK);
    const int bn = tile.bn, half_rows = 32 * tile.wgs;
    cudaError_t e = encode({
        {&a.x_q, {args.codes(), m, k_padded, k_padded, bn, kBlockK, 1, CU_TENSOR_MAP_SWIZZLE_128B}},
        {&a.qweight, {p.qweight, n, k / 2, k / 2, half_rows, kBlockK / 2, 1, CU_TENSOR_MAP_SWIZZLE_NONE}},
        {&a.x_scale, {args.scales(), 1, m, align_up(4 * m, 16), 1, bn, 4, CU_TENSOR_MAP_SWIZZLE_NONE}},
    });
    if (e == cudaSuccess && r > 0)
        e = encode({
            {&a.t, {args.t(), m, r, 2 * r, bn, kTailRanks, 2, CU_TENSOR_MAP_SWIZZLE_64B}},
            {&a.lora_up, {p.lora_up, n, r, 2 * r, half_rows, kTailRanks, 2, CU_TENSOR_MAP_SWIZZLE_64B}},
        });
    if (e != cudaSuccess) return e;
    a.z = static_cast<const uint8_t*>(p.wscale);
    a.wscale2 = static_cast<const float*>(p.wscale2);
    a.bias = static_cast<const uint16_t*>(p.bias);
    a.y = p.y;
    a.m = p.m, a.n = p.n, a.k = p.k, a.r = p.r;
    a.function = args.function();
    a.row_tiles = static_cast<int>(tiles_along_n(tile, p.n));
    a.token_tiles = static_cast<int>(ceil_div(p.m, bn));

    const GemmKernel gated = args.function() == SVDQ_ACT_GELU ? compiled.gelu_gate : compiled.silu_gate;
    const GemmKernel kernel = p.activation == SVDQ_ACT_NONE ? compiled.none : args.gated() ? gated : compiled.unary;
    const dim3 grid(static_cast<unsigned>(std::min(a.row_tiles * a.token_tiles, sms)));
    return launch_kernel(kernel, {grid, compiled.threads, static_cast<size_t>(compiled.smem), true}, stream, a);
}

}  // namespace svdq::sm90
