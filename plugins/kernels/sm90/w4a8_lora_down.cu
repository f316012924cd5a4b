// Chooses the tile and the split of K of lora_down_kernel for a shape, and launches it.
#include "../common/device.h"
#include "launch.h"
#include "tensor_map.h"
#include "w4a8_layout.h"
#include "w4a8_lora_down.cuh"
#include "w4a8_quantize.h"

namespace svdq::sm90 {
namespace {

struct Choice {
    void (*kernel)(LoraDownArgs);
    int ranks, rows, smem;
};

template <typename T, int kRanks, int kTiles>
constexpr Choice compiled() {
    using S = LoraDownSmem<kRanks, kTiles>;
    return {lora_down_kernel<T, kRanks, kTiles>, kRanks, S::kRows, S::kBytes};
}

// 256 rows read lora_down half as often, but leave room for one CTA per SM only.
constexpr int kLongK = 3072;
template <typename T>
Choice choose(int k, int r) {
    if (r <= 32) return compiled<T, 32, 1>();
    if (r <= 64) return compiled<T, 64, 1>();
    return k < kLongK ? compiled<T, 128, 1>() : compiled<T, 128, 2>();
}

// CTAs that share a tile's K: as many as fill the SMs once, none with less than five steps of K to do. A cluster
// lies within 16 or 18 SMs, so where an SM holds one CTA, their number is a power of two and leaves some SMs over.
int split(const Choice& c, int sms, int tiles, int k) {
    const int fill = (c.rows == 128 ? sms : sms * 7 / 8) / tiles, most = k / (5 * kLoraStep);
    int ctas = fill < most ? fill : most;
    ctas = ctas < 1 ? 1 : ctas > kMaxLoraCtas ? kMaxLoraCtas : ctas;
    while (c.rows > 128 && (ctas & (ctas - 1))) --ctas;
    return ctas;
}

}  // namespace

cudaError_t launch_lora_down(const svdq_linear_params& p, cudaStream_t stream) {
    int sms = 0;
    if (const cudaError_t e = multiprocessors(&sms)) return e;
    const Choice c = p.dtype == SVDQ_F16 ? choose<__half>(p.k, p.r) : choose<__nv_bfloat16>(p.k, p.r);
    const int tiles = ceil_div(p.m, c.rows), passes = ceil_div(p.r, c.ranks);
    const int ctas = split(c, sms, tiles * passes, p.k);

    const uint64_t m = uint64_t(p.m), k = uint64_t(p.k), r = uint64_t(p.r);
    LoraDownArgs a = {};
    cudaError_t e = encode(&a.x, {p.x, m, k, 2 * k, uint32_t(c.rows), kLoraStep, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (!e) e = encode(&a.lora_down, {p.lora_down, r, k, 2 * k, uint32_t(c.ranks), kLoraStep, 2, CU_TENSOR_MAP_SWIZZLE_128B});
    if (e) return e;
    a.t = reinterpret_cast<uint16_t*>(static_cast<uint8_t*>(p.workspace) + W4A8Workspace(p.m, p.k, p.r).t);
    a.m = p.m, a.k = p.k, a.r = p.r;
    const dim3 grid{unsigned(ctas), unsigned(tiles), unsigned(passes)};
    return launch_clusters(c.kernel, a, ctas, grid, kLoraDownThreads, c.smem, stream);
}

}  // namespace svdq::sm90
