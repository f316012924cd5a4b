// Chooses the rows per CTA of quantize_rows_w4a8 for a K, and launches it.
#include "../common/launch.h"
#include "w4a8_quantize.h"
#include "w4a8_quantize_rows.cuh"

namespace svdq::sm90 {

constexpr int kThreadsWanted = 192;  // six or seven CTAs per SM

cudaError_t launch_quantize_rows(const svdq_linear_params& p, cudaStream_t stream) {
    const W4A8Workspace ws(p.m, p.k, p.r);
    auto* base = static_cast<uint8_t*>(p.workspace);
    QuantizeRowsArgs a = {};
    a.x = static_cast<const uint16_t*>(p.x);
    a.act_mul = static_cast<const uint16_t*>(p.act_mul);
    a.x_q = base + ws.x_q;
    a.x_scale = reinterpret_cast<float*>(base + ws.x_scale);
    a.m = p.m, a.k = p.k;
    a.beside = p.r > 0;
    const int per_row = 4 * ceil_div(p.k, kBlockK);
    a.rows = kThreadsWanted / per_row > 1 ? kThreadsWanted / per_row : 1;
    const int threads = ceil_div(a.rows * per_row, 32) * 32;
    const auto kernel = p.dtype == SVDQ_F16 ? quantize_rows_w4a8_kernel<__half> : quantize_rows_w4a8_kernel<__nv_bfloat16>;
    return launch_kernel(kernel, dim3(unsigned(ceil_div(p.m, a.rows))), threads, 0, stream, a, true);
}

}  // namespace svdq::sm90
