// Chooses rows per CTA and the split of K of quantize_w4a8 for a shape and launches it.
#include "w4a8_quantize.cuh"

#include "tensor_map.h"
#include "w4a8.h"

namespace svdq::sm90 {
namespace {

struct Split {
    int tokens, blocks;       // rows per cluster, 128-blocks of K per CTA
};

// About 48 KiB of x per CTA, so that several CTAs of an SM overlap their loads, exchange and stores.
Split choose(int k) {
    const int all = (k + kBlockK - 1) / kBlockK;
    const auto even = [all](int ctas) { return (all + ctas - 1) / ctas; };
    if (all <= 24) return {64, even((all + 2) / 3)};
    if (all <= 48) return {64, even(8)};
    if (all <= 96) return {32, even(8)};
    return {32, even(16)};
}

using QuantizeKernel = void (*)(QuantizeArgs);

QuantizeKernel pick(int dtype, int tokens) {
    if (dtype == SVDQ_F16) return tokens == 64 ? quantize_w4a8_kernel<__half, 64> : quantize_w4a8_kernel<__half, 32>;
    return tokens == 64 ? quantize_w4a8_kernel<__nv_bfloat16, 64> : quantize_w4a8_kernel<__nv_bfloat16, 32>;
}

}  // namespace

size_t workspace_bytes_w4a8(int m, int /*n*/, int k, int r) { return W4A8Workspace(m, k, r).bytes; }

bool can_run_w4a8(const svdq_linear_params& p) { return p.format == SVDQ_FORMAT_W4A8 && p.k <= kMaxQuantizeK; }

cudaError_t launch_quantize_w4a8_tiled(const svdq_linear_params& p, cudaStream_t stream, int tokens, int blocks) {
    if (p.m == 0) return cudaSuccess;
    if (tokens == 0) {
        const Split s = choose(p.k);
        tokens = s.tokens, blocks = s.blocks;
    }
    const W4A8Workspace ws(p.m, p.k, p.r);
    auto* base = static_cast<uint8_t*>(p.workspace);
    const uint64_t m = uint64_t(p.m), k = uint64_t(p.k), r = uint64_t(p.r);
    QuantizeArgs a = {};
    a.lora_box_rows = p.r < kRankRound ? p.r : kRankRound;
    cudaError_t e = encode(&a.x, {p.x, m, k, 2 * k, uint32_t(tokens), 64, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e && p.r > 0) {
        e = encode(&a.lora_down,
                   {p.lora_down, r, k, 2 * k, uint32_t(a.lora_box_rows), 64, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    }
    if (e) return e;
    a.act_mul = p.act_mul;
    a.x_q = base + ws.x_q;
    a.x_scale = reinterpret_cast<float*>(base + ws.x_scale);
    a.t = base + ws.t;
    a.m = p.m, a.k = p.k, a.r = p.r;
    a.blocks_per_cta = blocks;

    const int all_blocks = (p.k + kBlockK - 1) / kBlockK;
    const int cluster = (all_blocks + blocks - 1) / blocks;
    const QuantizeKernel kernel = pick(p.dtype, tokens);
    const int smem = QuantizeSmem(tokens, blocks, a.lora_box_rows).bytes;
    e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    if (!e && cluster > 8) e = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (e) return e;

    cudaLaunchAttribute attrs[2] = {};
    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim = {unsigned(cluster), 1, 1};
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(unsigned(cluster), unsigned((p.m + tokens - 1) / tokens));
    config.blockDim = dim3(kQuantizeThreads);
    config.dynamicSmemBytes = size_t(smem);
    config.stream = stream;
    config.attrs = attrs;
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, kernel, a);
}

cudaError_t launch_quantize_w4a8(const svdq_linear_params& p, cudaStream_t stream) {
    return launch_quantize_w4a8_tiled(p, stream, 0, 0);
}

}  // namespace svdq::sm90
