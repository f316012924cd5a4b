// Chooses the split of K of quantize_once_w4a8 for a shape, and launches it.
#include "../common/launch.h"
#include "tensor_map.h"
#include "w4a8_quantize.h"
#include "w4a8_quantize_once.cuh"

namespace svdq::sm90 {
namespace {

constexpr int kMaxStages = 6;

int blocks_per_cta(int k, int ctas) { return static_cast<int>(ceil_div(ceil_div(k, kBlockK), ctas)); }

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

cudaError_t quantize_once(const LinearArgs& args, cudaStream_t stream) {
    const svdq_linear_params& p = args.p;
    QuantizeOnceArgs a = {};
    const int64_t m = p.m, k = p.k, r = p.r;
    cudaError_t e = encode({{&a.x, {p.x, m, k, 2 * k, kTileTokens, 64, 2, CU_TENSOR_MAP_SWIZZLE_128B}}});
    if (e == cudaSuccess && r > 0)
        e = encode({{&a.lora_down, {p.lora_down, r, k, 2 * k, r, 64, 2, CU_TENSOR_MAP_SWIZZLE_128B}}});
    if (e != cudaSuccess) return e;
    a.lora_down_rows = static_cast<const uint16_t*>(p.lora_down);
    a.act_mul = static_cast<const uint16_t*>(p.act_mul);
    a.x_q = args.codes();
    a.x_scale = reinterpret_cast<float*>(args.scales());
    a.t = reinterpret_cast<uint16_t*>(args.t());
    a.m = p.m, a.k = p.k, a.r = p.r;
    a.ctas = choose_ctas(p.k, p.r);
    a.blocks_per_cta = blocks_per_cta(p.k, a.ctas);
    a.stages = stages_that_fit(a.ctas, a.blocks_per_cta, p.r);
    const auto kernel =
        p.dtype == SVDQ_F16 ? quantize_once_w4a8_kernel<__half> : quantize_once_w4a8_kernel<__nv_bfloat16>;
    LaunchConfig how = {};
    how.threads = kOnceThreads;
    how.shared_bytes = static_cast<size_t>(QuantizeOnceSmem(a.ctas, a.blocks_per_cta, a.stages, p.r).bytes);
    how.overlap = true;
    how.cluster = a.ctas;
    return launch_persistent(kernel, how, static_cast<int>(ceil_div(p.m, kTileTokens)), stream, a);
}

}  // namespace svdq::sm90
