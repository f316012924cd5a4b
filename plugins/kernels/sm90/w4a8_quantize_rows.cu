// Chooses the rows per CTA of quantize_rows_w4a8 for a K, and launches it.
#include <algorithm>

#include "../common/launch.h"
#include "w4a8_quantize.h"
#include "w4a8_quantize_rows.cuh"

namespace svdq::sm90 {

constexpr int kThreadsWanted = 192;  // six or seven CTAs per SM

cudaError_t quantize_rows(const LinearArgs& args, cudaStream_t stream) {
    const svdq_linear_params& p = args.p;
    QuantizeRowsArgs a = {};
    a.x = static_cast<const uint16_t*>(p.x);
    a.act_mul = static_cast<const uint16_t*>(p.act_mul);
    a.x_q = args.codes();
    a.x_scale = reinterpret_cast<float*>(args.scales());
    a.m = p.m, a.k = p.k;
    a.beside = p.r > 0;
    const int per_row = 4 * static_cast<int>(ceil_div(p.k, kBlockK));
    a.rows = std::max(1, kThreadsWanted / per_row);
    const int threads = static_cast<int>(align_up(a.rows * per_row, 32));
    const auto kernel =
        p.dtype == SVDQ_F16 ? quantize_rows_w4a8_kernel<__half> : quantize_rows_w4a8_kernel<__nv_bfloat16>;
    return launch_kernel(kernel, {dim3(static_cast<unsigned>(ceil_div(p.m, a.rows))), threads, 0, true}, stream, a);
}

}  // namespace svdq::sm90
