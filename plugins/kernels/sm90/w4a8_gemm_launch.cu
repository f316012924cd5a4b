// Chooses the token tile and cluster of gemm_w4a8 for a shape and launches it.
#include <initializer_list>

#include "tensor_map.h"
#include "w4a8.h"
#include "w4a8_gemm_table.cuh"

namespace svdq::sm90 {
namespace {

struct TileChoice {
    CompiledTile tile;
    int cluster;
};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Cycles of the busiest CTA, fitted to H200 timings: per stage of K the tensor work (four wgmma of bn/2
// cycles per warpgroup) and what the ring costs beside it, per tile its end.
double cost(const CompiledTile& t, int cluster, int sms, int n_out, bool geglu, int m, int k, int r) {
    const int rows = 64 * t.wgs / (geglu ? 2 : 1);
    const int units = ceil_div(ceil_div(n_out, rows), cluster) * ceil_div(m, t.bn);
    const int waves = ceil_div(units, sms / cluster);
    const double stage = (2.0 * t.wgs * t.bn + (t.wgs == 3 ? 208 : 130)) * (cluster == 1 ? 1.02 : 1.0);
    const double end = (r / 16) * (t.wgs * t.bn / 2) + (t.wgs == 3 ? 1800 : 500 + 4.0 * t.bn);
    return waves * (ceil_div(k, kBlockK) * stage + end);
}

TileChoice choose(int sms, int n_out, bool geglu, int m, int k, int r) {
    TileChoice best = {kTiles[0], 1};
    double best_cost = 1e300;
    for (const CompiledTile& t : kTiles) {
        for (const int cluster : {2, 1}) {
            const double c = cost(t, cluster, sms, n_out, geglu, m, k, r);
            if (c < best_cost) best = {t, cluster}, best_cost = c;
        }
    }
    return best;
}

ActClass act_class(int activation) {
    if (activation == SVDQ_ACT_NONE) return ActClass::kNone;
    return activation == SVDQ_ACT_GEGLU ? ActClass::kGeglu : ActClass::kUnary;
}

}  // namespace

cudaError_t launch_gemm_w4a8_tiled(const svdq_linear_params& p, cudaStream_t stream, int bn, int cluster) {
    if (p.m == 0) return cudaSuccess;
    int device = 0, sms = 0;
    if (cudaError_t e = cudaGetDevice(&device)) return e;
    if (cudaError_t e = cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device)) return e;

    const bool geglu = p.activation == SVDQ_ACT_GEGLU;
    const int n_out = geglu ? p.n / 2 : p.n;
    TileChoice choice = choose(sms, n_out, geglu, p.m, p.k, p.r);
    for (const CompiledTile& t : kTiles) {
        if (t.bn == bn) choice = {t, cluster};
    }
    cluster = choice.cluster, bn = choice.tile.bn;
    const int rows_per_tile = 64 * choice.tile.wgs / (geglu ? 2 : 1);
    const int row_tiles = ceil_div(n_out, rows_per_tile);

    const W4A8Workspace ws(p.m, p.k, p.r);
    const auto* base = static_cast<const uint8_t*>(p.workspace);
    const uint64_t m = uint64_t(p.m), n = uint64_t(p.n), k = uint64_t(p.k), r = uint64_t(p.r);
    const uint64_t k_padded = align_up(k, kBlockK);
    const uint32_t token_box = uint32_t(bn / cluster);
    GemmArgs a = {};
    cudaError_t e = encode(
        &a.x_q, {base + ws.x_q, m, k_padded, k_padded, token_box, kBlockK, 1, CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e)
        e = encode(&a.qweight, {p.qweight, n, k / 2, k / 2, uint32_t(32 * choice.tile.wgs), kBlockK / 2, 1,
                                CU_TENSOR_MAP_SWIZZLE_NONE});
    if (!e && p.r > 0)
        e = encode(&a.t, {base + ws.t, m, r, 2 * r, token_box, 64, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (e) return e;
    a.z = static_cast<const uint8_t*>(p.wscale);
    a.wscale2 = static_cast<const float*>(p.wscale2);
    a.x_scale = reinterpret_cast<const float*>(base + ws.x_scale);
    a.lora_up = p.lora_up;
    a.bias = p.bias;
    a.y = p.y;
    a.m = p.m, a.n = p.n, a.k = p.k, a.r = p.r;
    a.activation = p.activation;
    a.row_units = ceil_div(row_tiles, cluster);
    a.token_tiles = ceil_div(p.m, bn);
    a.cluster = cluster;

    const GemmKernel kernel = p.dtype == SVDQ_F16 ? gemm_w4a8_f16(bn, act_class(p.activation))
                                                  : gemm_w4a8_bf16(bn, act_class(p.activation));
    const int smem = choice.tile.smem;
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    if (e) return e;
    const int units = a.row_units * a.token_tiles;
    const int clusters = units < sms / cluster ? units : sms / cluster;

    cudaLaunchAttribute attrs[2] = {};
    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim = {unsigned(cluster), 1, 1};
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(clusters * cluster));
    config.blockDim = dim3(unsigned(128 * (choice.tile.wgs + 1)));
    config.dynamicSmemBytes = size_t(smem);
    config.stream = stream;
    config.attrs = attrs;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, kernel, a);
}

cudaError_t launch_gemm_w4a8(const svdq_linear_params& p, cudaStream_t stream) {
    return launch_gemm_w4a8_tiled(p, stream, 0, 0);
}

}  // namespace svdq::sm90
