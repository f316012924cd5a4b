// Chooses the tile and the split of K of lora_down_kernel for a shape, and launches it.
#include <algorithm>

#include "../common/device.h"
#include "../common/launch.h"
#include "tensor_map.h"
#include "w4a8_layout.h"
#include "w4a8_lora_down.cuh"
#include "w4a8_quantize.h"

namespace svdq::sm90 {
namespace {

struct LoraDownTile {
    void (*kernel)(LoraDownArgs);
    int ranks, rows, smem;
};

template <class T, int kRanks, int kTiles>
constexpr LoraDownTile compiled() {
    using S = LoraDownSmem<kRanks, kTiles>;
    return {lora_down_kernel<T, kRanks, kTiles>, kRanks, S::kRows, S::kBytes};
}

// 256 rows read lora_down half as often, but leave room for one CTA per SM only.
constexpr int kLongK = 3072;
template <class T>
LoraDownTile choose(int k, int r) {
    if (r <= 32) return compiled<T, 32, 1>();
    if (r <= 64) return compiled<T, 64, 1>();
    return k < kLongK ? compiled<T, 128, 1>() : compiled<T, 128, 2>();
}

// CTAs that share a tile's K: as many as fill the SMs once, none with less than five steps of K to do. A cluster
// lies within 16 or 18 SMs, so where an SM holds one CTA, their number is a power of two and leaves some SMs over.
int split(const LoraDownTile& c, int sms, int tiles, int k) {
    const int fill = (c.rows == 128 ? sms : sms * 7 / 8) / tiles, most = k / (5 * kLoraStep);
    int ctas = std::min(fill, most);
    ctas = std::max(1, std::min(ctas, kMaxLoraCtas));
    while (c.rows > 128 && (ctas & (ctas - 1))) --ctas;
    return ctas;
}

}  // namespace

cudaError_t lora_down(const LinearArgs& args, cudaStream_t stream) {
    const svdq_linear_params& p = args.p;
    int sms = 0;
    if (const cudaError_t e = multiprocessors(&sms); e != cudaSuccess) return e;
    const LoraDownTile c = p.dtype == SVDQ_F16 ? choose<__half>(p.k, p.r) : choose<__nv_bfloat16>(p.k, p.r);
    const int tiles = static_cast<int>(ceil_div(p.m, c.rows)), passes = static_cast<int>(ceil_div(p.r, c.ranks));
    const int ctas = split(c, sms, tiles * passes, p.k);

    LoraDownArgs a = {};
    const int64_t m = p.m, k = p.k, r = p.r;
    const cudaError_t e =
        encode({{&a.x, {p.x, m, k, 2 * k, c.rows, kLoraStep, 2, CU_TENSOR_MAP_SWIZZLE_128B}},
                {&a.lora_down, {p.lora_down, r, k, 2 * k, c.ranks, kLoraStep, 2, CU_TENSOR_MAP_SWIZZLE_128B}}});
    if (e != cudaSuccess) return e;
    a.t = reinterpret_cast<uint16_t*>(args.t());
    a.m = p.m, a.k = p.k, a.r = p.r;
    const dim3 grid(static_cast<unsigned>(ctas), static_cast<unsigned>(tiles), static_cast<unsigned>(passes));
    return launch_kernel(c.kernel, {grid, kLoraDownThreads, static_cast<size_t>(c.smem), true, ctas}, stream, a);
}

}  // namespace svdq::sm90
