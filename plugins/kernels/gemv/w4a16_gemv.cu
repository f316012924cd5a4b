// Launchers of the w4a16 kernels for few tokens, and the choice of the tile.
#include <algorithm>

#include "../common/device.h"
#include "../common/launch.h"
#include "gemv.cuh"
#include "gemv.h"
#include "lora_down.cuh"

namespace svdq::gemv {
namespace {

template <class T, class S, bool kGated>
cudaError_t launch_gated(GemvArgs g, bool overlap, cudaStream_t stream) {
    constexpr int kUnit = 128 * S::kWarps;  // one step of every warp
    const int fitting = std::max(1, S::kXBytes / (2 * g.m * kUnit)) * kUnit;
    g.chunk = std::min(g.k, fitting);
    const int shared = S::kX + g.m * g.chunk * 2;
    const dim3 grid((g.n + S::kRows - 1) / S::kRows);
    return launch_kernel(gemv_kernel<T, S, kGated>, {grid, S::kThreads, static_cast<size_t>(shared), overlap}, stream,
                         g);
}

template <class T, class S>
cudaError_t launch(const GemvArgs& g, bool overlap, cudaStream_t stream) {
    return g.n_out != g.n ? launch_gated<T, S, true>(g, overlap, stream)
                          : launch_gated<T, S, false>(g, overlap, stream);
}

// Weight rows that the busiest multiprocessor reads.
int64_t busiest(const GemvArgs& g, int rows, int multiprocessors) {
    const int64_t ctas = (g.n + rows - 1) / rows;
    return (ctas + multiprocessors - 1) / multiprocessors * rows;
}

template <class T>
cudaError_t launch_as(const GemvArgs& g, bool overlap, cudaStream_t stream) {
    // Few rows: small CTAs whose many warps split K. Many: large ones, as each makes all of x^ for itself.
    constexpr int kFewRows = 2560, kSomeRows = 12288;
    const bool one_n8 = g.m <= 8;
    if (one_n8 && g.n <= kFewRows) return launch<T, Shape<1, 1, 8, 4, 2>>(g, overlap, stream);
    if (one_n8 && g.n <= kSomeRows) return launch<T, Shape<2, 1, 8, 2, 3>>(g, overlap, stream);
    if (!one_n8 && g.n <= 2 * kFewRows) return launch<T, Shape<1, 2, 8, 4, 2>>(g, overlap, stream);

    // 64 rows a CTA, or 48 where that spreads them more evenly: N = 18432 on 132 multiprocessors are 288 CTAs, so
    // three on some and two on most, or 384, three on nearly all.
    int sms = 0, shared = 0;
    cudaError_t e = multiprocessors(&sms);
    if (e == cudaSuccess) e = device_attribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    if (e != cudaSuccess) return e;
    const bool even = busiest(g, 48, sms) < busiest(g, 64, sms);
    if (!one_n8)
        return even ? launch<T, Shape<3, 2, 4, 2, 3>>(g, overlap, stream)
                    : launch<T, Shape<4, 2, 4, 2, 3>>(g, overlap, stream);
    if (!even) return launch<T, Shape<4, 1, 4, 2, 3>>(g, overlap, stream);
    // Three CTAs must fit: with little x^ and the shared memory of sm_90, also of eight warps each, which wait less.
    constexpr int kFewTokens = 2, kMuchShared = 200 * 1024;
    return g.m <= kFewTokens && shared >= kMuchShared ? launch<T, Shape<3, 1, 8, 2, 3>>(g, overlap, stream)
                                                      : launch<T, Shape<3, 1, 4, 2, 3>>(g, overlap, stream);
}

}  // namespace

cudaError_t lora_down(const LinearArgs& args, cudaStream_t stream) {
    const svdq_linear_params& p = args.p;
    if (p.r == 0) return cudaSuccess;
    DownArgs d = {};
    d.x = static_cast<const uint16_t*>(p.x);
    d.lora_down = static_cast<const uint16_t*>(p.lora_down);
    d.t = reinterpret_cast<uint16_t*>(args.t());
    d.m = p.m, d.k = p.k, d.r = p.r;
    const auto kernel = p.dtype == SVDQ_F16 ? lora_down_kernel<__half> : lora_down_kernel<__nv_bfloat16>;
    return launch_kernel(kernel, {dim3(p.r / 8), 32 * kDownWarps, 0, args.overlap}, stream, d);
}

cudaError_t gemv_w4a16(const LinearArgs& args, cudaStream_t stream) {
    const svdq_linear_params& p = args.p;
    GemvArgs g = {};
    g.x = static_cast<const uint16_t*>(p.x);
    g.act_mul = static_cast<const uint16_t*>(p.act_mul);
    g.qweight = static_cast<const uint8_t*>(p.qweight);
    g.wscale = static_cast<const uint16_t*>(p.wscale);
    g.t = reinterpret_cast<const uint16_t*>(args.t());
    g.lora_up = static_cast<const uint16_t*>(p.lora_up);
    g.bias = static_cast<const uint16_t*>(p.bias);
    g.wscale2 = static_cast<const float*>(p.wscale2);
    g.y = static_cast<uint16_t*>(p.y);
    g.m = p.m, g.n = p.n, g.k = p.k, g.r = p.r, g.n_out = args.n_out();
    g.function = args.function();
    g.shift = p.act_shift;
    g.early = args.overlap && p.r == 0;
    return p.dtype == SVDQ_F16 ? launch_as<__half>(g, args.overlap, stream)
                               : launch_as<__nv_bfloat16>(g, args.overlap, stream);
}

}  // namespace svdq::gemv
