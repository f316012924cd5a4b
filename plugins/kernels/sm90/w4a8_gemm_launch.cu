// Chooses the tile of gemm_w4a8 for a shape and launches it.
#include "../common/device.h"
#include "../common/launch.h"
#include "tensor_map.h"
#include "w4a8.h"
#include "w4a8_gemm_table.cuh"

namespace svdq::sm90 {
namespace {

int tiles_along_n(const CompiledTile& t, int n_out, bool geglu) {
    return ceil_div(n_out, 64 * t.wgs / (geglu ? 2 : 1));
}

// The tile with the fewest cycles on the busiest SM.
const CompiledTile& choose(int sms, int n_out, bool geglu, int m, int k, int r) {
    const auto cycles = [&](const CompiledTile& t) {
        const int waves = ceil_div(tiles_along_n(t, n_out, geglu) * ceil_div(m, t.bn), sms);
        const int low_rank = (r - 32) / 16 * (t.wgs * t.bn / 2);
        return int64_t(waves) * (int64_t(ceil_div(k, kBlockK)) * t.stage + t.end + low_rank);
    };
    const CompiledTile* best = kTiles;
    for (const CompiledTile& t : kTiles) {
        if (cycles(t) < cycles(*best)) best = &t;
    }
    return *best;
}

ActClass act_class(int activation) {
    if (activation == SVDQ_ACT_NONE) return ActClass::kNone;
    return activation == SVDQ_ACT_GEGLU ? ActClass::kGeglu : ActClass::kUnary;
}

}  // namespace

cudaError_t launch_gemm_w4a8(const svdq_linear_params& p, cudaStream_t stream) {
    if (p.m == 0) return cudaSuccess;
    int sms = 0;
    if (const cudaError_t e = multiprocessors(&sms)) return e;

    const bool geglu = p.activation == SVDQ_ACT_GEGLU;
    const int n_out = geglu ? p.n / 2 : p.n;
    const CompiledTile& tile = choose(sms, n_out, geglu, p.m, p.k, p.r);
    const int bn = tile.bn;

    const W4A8Workspace ws(p.m, p.k, p.r);
    const auto* base = static_cast<const uint8_t*>(p.workspace);
    const uint64_t m = uint64_t(p.m), n = uint64_t(p.n), k = uint64_t(p.k), r = uint64_t(p.r);
    const uint64_t k_padded = align_up(k, kBlockK);
    const uint32_t token_box = uint32_t(bn);
    GemmArgs a = {};
    cudaError_t e = encode(
        &a.x_q, {base + ws.x_q, m, k_padded, k_padded, token_box, kBlockK, 1, CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e)
        e = encode(&a.qweight, {p.qweight, n, k / 2, k / 2, uint32_t(32 * tile.wgs), kBlockK / 2, 1,
                                CU_TENSOR_MAP_SWIZZLE_NONE});
    if (!e && p.r > 0)
        e = encode(&a.t, {base + ws.t, m, r, 2 * r, token_box, kTailRanks, 2, CU_TENSOR_MAP_SWIZZLE_64B});
    if (!e && p.r > 0)
        e = encode(&a.lora_up, {p.lora_up, n, r, 2 * r, uint32_t(32 * tile.wgs), kTailRanks, 2, CU_TENSOR_MAP_SWIZZLE_64B});
    if (!e)
        e = encode(&a.x_scale, {base + ws.x_scale, 1, m, align_up(4 * m, 16), 1, token_box, 4, CU_TENSOR_MAP_SWIZZLE_NONE});
    if (e) return e;
    a.z = static_cast<const uint8_t*>(p.wscale);
    a.wscale2 = static_cast<const float*>(p.wscale2);
    a.bias = static_cast<const uint16_t*>(p.bias);
    a.y = p.y;
    a.m = p.m, a.n = p.n, a.k = p.k, a.r = p.r;
    a.activation = p.activation;
    a.row_tiles = tiles_along_n(tile, n_out, geglu);
    a.token_tiles = ceil_div(p.m, bn);

    const GemmKernel kernel = p.dtype == SVDQ_F16 ? gemm_w4a8_f16(bn, act_class(p.activation))
                                                  : gemm_w4a8_bf16(bn, act_class(p.activation));
    const int tiles = a.row_tiles * a.token_tiles;
    const dim3 grid(unsigned(tiles < sms ? tiles : sms));
    return launch_kernel(kernel, grid, 128 * (tile.wgs + 1), size_t(tile.smem), stream, a, true);
}

}  // namespace svdq::sm90
