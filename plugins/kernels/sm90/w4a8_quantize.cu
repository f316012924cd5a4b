// Chooses kernel (a) and its split of K for a shape, and launches it.
#include "w4a8_quantize.cuh"

#include "tensor_map.h"
#include "w4a8.h"
#include "w4a8_quantize_any.cuh"

namespace svdq::sm90 {
namespace {

constexpr int kSmem = 227 * 1024;
constexpr int kMaxStages = 6;

int blocks_of(int k) { return (k + kBlockK - 1) / kBlockK; }
int ceil_div(int a, int b) { return (a + b - 1) / b; }
int split(int blocks, int ctas) { return ceil_div(blocks, ctas); }

// Ring stages that fit beside the rest; 0 where fewer than two do.
int stages_that_fit(int ctas, int blocks, int r) {
    if (blocks > kMaxBlocksPerCta || !tokens_for_all(ctas)) return 0;
    for (int s = kMaxStages; s >= 2; --s) {
        if (QuantizeSmem(ctas, blocks, s, r).bytes <= kSmem) return s;
    }
    return 0;
}

constexpr int kAnyTokens = 32;

struct Split {
    bool streaming;  // persistent clusters, or one tile per cluster (takes every shape)
    int ctas;        // CTAs that share a row, up to 16
};

// The fewest CTAs per cluster that leave two stages (three where t takes several passes over a stage); else the
// kernel for every shape.
Split choose(int k, int r) {
    const int all = blocks_of(k);
    if (all <= 16) return {false, ceil_div(all, 9)};  // short rows: two CTAs per SM beat a pipeline
    for (const int want : {r <= kRanksPerPass ? 2 : 3, 2}) {
        for (const int ctas : {1, 2, 4, 8, 16}) {
            if (stages_that_fit(ctas, split(all, ctas), r) >= want) return {true, ctas};
        }
    }
    return {false, all <= 96 ? ceil_div(all, 12) : ceil_div(all, 16)};
}

template <typename Kernel, typename Args>
cudaError_t launch(Kernel kernel, const Args& args, unsigned ctas, dim3 grid, int threads, int smem,
                   cudaStream_t stream) {
    cudaLaunchAttribute attrs[2] = {};
    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim = {ctas, 1, 1};
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(smem);
    config.stream = stream;
    config.attrs = attrs;
    config.numAttrs = 2;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    if (!e && ctas > 8) e = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (!e && grid.x == 0) {  // persistent: as many clusters as run at once
        config.gridDim = dim3(ctas);
        int clusters = 0;
        e = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
        const unsigned tiles = grid.y;
        const unsigned used = unsigned(clusters) < tiles ? unsigned(clusters) : tiles;
        config.gridDim = dim3(ctas * (used > 0 ? used : 1));
    }
    return e ? e : cudaLaunchKernelEx(&config, kernel, args);
}

cudaError_t encode_operands(CUtensorMap* x, CUtensorMap* lora_down, const svdq_linear_params& p, int tokens) {
    const uint64_t m = uint64_t(p.m), k = uint64_t(p.k), r = uint64_t(p.r);
    cudaError_t e = encode(x, {p.x, m, k, 2 * k, uint32_t(tokens), 64, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e && p.r > 0) {
        e = encode(lora_down, {p.lora_down, r, k, 2 * k, uint32_t(p.r < 64 ? p.r : 64), 64, 2,
                               CU_TENSOR_MAP_SWIZZLE_128B});
    }
    return e;
}

cudaError_t launch_streaming(const svdq_linear_params& p, cudaStream_t stream, int ctas) {
    const W4A8Workspace ws(p.m, p.k, p.r);
    auto* base = static_cast<uint8_t*>(p.workspace);
    QuantizeArgs a = {};
    if (cudaError_t e = encode_operands(&a.x, &a.lora_down, p, kTileTokens)) return e;
    a.lora_down_rows = static_cast<const uint16_t*>(p.lora_down);
    a.act_mul = static_cast<const uint16_t*>(p.act_mul);
    a.x_q = base + ws.x_q;
    a.x_scale = reinterpret_cast<float*>(base + ws.x_scale);
    a.t = reinterpret_cast<uint16_t*>(base + ws.t);
    a.m = p.m, a.k = p.k, a.r = p.r;
    a.ctas = ctas;
    a.blocks_per_cta = split(blocks_of(p.k), ctas);
    a.stages = stages_that_fit(ctas, a.blocks_per_cta, p.r);
    if (a.stages == 0) return cudaErrorInvalidConfiguration;
    const auto kernel = p.dtype == SVDQ_F16 ? quantize_w4a8_kernel<__half> : quantize_w4a8_kernel<__nv_bfloat16>;
    const int smem = QuantizeSmem(ctas, a.blocks_per_cta, a.stages, p.r).bytes;
    const dim3 tiles(0, unsigned(ceil_div(p.m, kTileTokens)));
    return launch(kernel, a, unsigned(ctas), tiles, kQuantizeThreads, smem, stream);
}

cudaError_t launch_any(const svdq_linear_params& p, cudaStream_t stream, int wanted_ctas) {
    const W4A8Workspace ws(p.m, p.k, p.r);
    auto* base = static_cast<uint8_t*>(p.workspace);
    QuantizeAnyArgs a = {};
    if (cudaError_t e = encode_operands(&a.x, &a.lora_down, p, kAnyTokens)) return e;
    a.lora_box_rows = p.r < kRankRound ? p.r : kRankRound;
    a.act_mul = p.act_mul;
    a.x_q = base + ws.x_q;
    a.x_scale = reinterpret_cast<float*>(base + ws.x_scale);
    a.t = base + ws.t;
    a.m = p.m, a.k = p.k, a.r = p.r;
    a.blocks_per_cta = split(blocks_of(p.k), wanted_ctas);
    const int ctas = split(blocks_of(p.k), a.blocks_per_cta);  // none without work
    const int smem = QuantizeAnySmem(kAnyTokens, a.blocks_per_cta, a.lora_box_rows).bytes;
    const dim3 grid(unsigned(ctas), unsigned(ceil_div(p.m, kAnyTokens)));
    const auto kernel = p.dtype == SVDQ_F16 ? quantize_any_w4a8_kernel<__half, kAnyTokens>
                                            : quantize_any_w4a8_kernel<__nv_bfloat16, kAnyTokens>;
    return launch(kernel, a, unsigned(ctas), grid, kQuantizeAnyThreads, smem, stream);
}

}  // namespace

size_t workspace_bytes_w4a8(int m, int /*n*/, int k, int r) { return W4A8Workspace(m, k, r).bytes; }

bool can_run_w4a8(const svdq_linear_params& p) {
    return p.format == SVDQ_FORMAT_W4A8 && p.k <= kMaxQuantizeK;
}

cudaError_t launch_quantize_w4a8(const svdq_linear_params& p, cudaStream_t stream) {
    if (p.m == 0) return cudaSuccess;
    const Split s = choose(p.k, p.r);
    return s.streaming ? launch_streaming(p, stream, s.ctas) : launch_any(p, stream, s.ctas);
}

}  // namespace svdq::sm90
