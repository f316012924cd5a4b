// Chooses the token tile and cluster of gemm_w4a8 for a shape and launches it.
#include <initializer_list>

#include "tensor_map.h"
#include "w4a8.h"
#include "w4a8_gemm_table.cuh"

namespace svdq::sm90 {
namespace {

struct TileChoice {
    int bn, cluster;
};

// Cycles of the busiest CTA: 128 * BN * K tensor work in each of its tiles, plus what a tile costs beside it.
double cost(int bn, int cluster, int sms, int row_tiles, int m, int k, int r) {
    const int token_tiles = (m + bn - 1) / bn;
    const int units = (row_tiles + cluster - 1) / cluster * token_tiles;
    const int waves = (units + sms / cluster - 1) / (sms / cluster);
    const int k_blocks = (k + kBlockK - 1) / kBlockK;
    const double stage = 4.0 * bn;                       // two warpgroups, four wgmma of bn/2 cycles each
    const double shared_loads = cluster == 1 ? 1.06 : 1; // x_q is fetched from L2 twice as often
    const double tile = k_blocks * stage * shared_loads + (r / 16) * bn + 600 + 4.0 * bn;
    return waves * tile;
}

TileChoice choose(int sms, int row_tiles, int m, int k, int r) {
    TileChoice best = {256, 1};
    double best_cost = 1e300;
    for (const int bn : kTokenTiles) {
        for (const int cluster : {2, 1}) {
            const double c = cost(bn, cluster, sms, row_tiles, m, k, r);
            if (c < best_cost) best = {bn, cluster}, best_cost = c;
        }
    }
    return best;
}

int smem_bytes(int bn) {
    switch (bn) {
        case 256: return kGemmSmemBytes<256>;
        case 224: return kGemmSmemBytes<224>;
        case 192: return kGemmSmemBytes<192>;
        case 160: return kGemmSmemBytes<160>;
        case 128: return kGemmSmemBytes<128>;
        default: return kGemmSmemBytes<64>;
    }
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
    const int rows_per_tile = geglu ? kRowsPerTile / 2 : kRowsPerTile;
    const int row_tiles = (n_out + rows_per_tile - 1) / rows_per_tile;
    if (bn == 0) {
        const TileChoice c = choose(sms, row_tiles, p.m, p.k, p.r);
        bn = c.bn, cluster = c.cluster;
    }

    const W4A8Workspace ws(p.m, p.k, p.r);
    const auto* base = static_cast<const uint8_t*>(p.workspace);
    const uint64_t m = uint64_t(p.m), n = uint64_t(p.n), k = uint64_t(p.k), r = uint64_t(p.r);
    const uint64_t k_padded = align_up(k, kBlockK);
    const uint32_t token_box = uint32_t(bn / cluster);
    GemmArgs a = {};
    cudaError_t e = encode(&a.x_q, {base + ws.x_q, m, k_padded, k_padded, token_box, kBlockK, 1,
                                    CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e) e = encode(&a.qweight, {p.qweight, n, k / 2, k / 2, 64, kBlockK / 2, 1, CU_TENSOR_MAP_SWIZZLE_NONE});
    if (!e && p.r > 0) e = encode(&a.t, {base + ws.t, m, r, 2 * r, token_box, 64, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e) {
        e = encode(&a.y, {p.y, m, uint64_t(n_out), 2 * uint64_t(n_out), kSlabTokens, uint32_t(rows_per_tile / 2), 2,
                          geglu ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B});
    }
    if (e) return e;
    a.z = static_cast<const uint8_t*>(p.wscale);
    a.wscale2 = static_cast<const float*>(p.wscale2);
    a.x_scale = reinterpret_cast<const float*>(base + ws.x_scale);
    a.lora_up = p.lora_up;
    a.bias = p.bias;
    a.m = p.m, a.n = p.n, a.k = p.k, a.r = p.r;
    a.activation = p.activation;
    a.row_units = (row_tiles + cluster - 1) / cluster;
    a.token_tiles = (p.m + bn - 1) / bn;
    a.cluster = cluster;

    const GemmKernel kernel = p.dtype == SVDQ_F16 ? gemm_w4a8_f16(bn, act_class(p.activation))
                                                  : gemm_w4a8_bf16(bn, act_class(p.activation));
    const int smem = smem_bytes(bn);
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
    config.blockDim = dim3(kGemmThreads);
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
