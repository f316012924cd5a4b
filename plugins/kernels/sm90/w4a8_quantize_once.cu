// Chooses the split of K of quantize_once_w4a8 for a shape, and launches it.
#include "launch.h"
#include "tensor_map.h"
#include "w4a8_quantize.h"
#include "w4a8_quantize_once.cuh"

namespace svdq::sm90 {
namespace {

constexpr int kMaxStages = 6;

int blocks_per_cta(int k, int ctas) { return ceil_div(ceil_div(k, kBlockK), ctas); }

// Ring stages that fit beside the rest; 0 where fewer than two do.
int stages_that_fit(int ctas, int blocks, int r) {
    if (blocks > kMaxBlocksPerCta || !tokens_for_all(ctas)) return 0;
    for (int s = kMaxStages; s >= 2; --s) {
        if (QuantizeOnceSmem(ctas, blocks, s, r).bytes <= kSmemLimit) return s;
    }
    return 0;
}

// The fewest CTAs per row that leave two stages; 0: none do.
int choose_ctas(int k, int r) {
    if (r > kOnceRanks) return 0;
    for (const int ctas : {1, 2, 4, 8, 16}) {
        if (stages_that_fit(ctas, blocks_per_cta(k, ctas), r) > 0) return ctas;
    }
    return 0;
}

}  // namespace

bool can_quantize_once(const svdq_linear_params& p) { return choose_ctas(p.k, p.r) > 0; }

cudaError_t launch_quantize_once(const svdq_linear_params& p, cudaStream_t stream) {
    const W4A8Workspace ws(p.m, p.k, p.r);
    auto* base = static_cast<uint8_t*>(p.workspace);
    const uint64_t m = uint64_t(p.m), k = uint64_t(p.k), r = uint64_t(p.r);
    QuantizeOnceArgs a = {};
    cudaError_t e = encode(&a.x, {p.x, m, k, 2 * k, kTileTokens, 64, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e && p.r > 0) e = encode(&a.lora_down, {p.lora_down, r, k, 2 * k, uint32_t(r), 64, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (e) return e;
    a.lora_down_rows = static_cast<const uint16_t*>(p.lora_down);
    a.act_mul = static_cast<const uint16_t*>(p.act_mul);
    a.x_q = base + ws.x_q;
    a.x_scale = reinterpret_cast<float*>(base + ws.x_scale);
    a.t = reinterpret_cast<uint16_t*>(base + ws.t);
    a.m = p.m, a.k = p.k, a.r = p.r;
    a.ctas = choose_ctas(p.k, p.r);
    a.blocks_per_cta = blocks_per_cta(p.k, a.ctas);
    a.stages = stages_that_fit(a.ctas, a.blocks_per_cta, p.r);
    const auto kernel = p.dtype == SVDQ_F16 ? quantize_once_w4a8_kernel<__half> : quantize_once_w4a8_kernel<__nv_bfloat16>;
    const int smem = QuantizeOnceSmem(a.ctas, a.blocks_per_cta, a.stages, p.r).bytes;
    const dim3 tiles(0, unsigned(ceil_div(p.m, kTileTokens)));
    return launch_clusters(kernel, a, a.ctas, tiles, kOnceThreads, smem, stream);
}

}  // namespace svdq::sm90
