// Chooses how kernel (a) is made up for a shape.
#include "w4a8.h"
#include "w4a8_layout.h"
#include "w4a8_quantize.h"

namespace svdq::sm90 {
namespace {

// Short rows: two kernels side by side, x read twice, are done before the clusters of the other have exchanged their
// maxima. (Measured: benchmarks/README.md.)
constexpr int kShortK = 2304;

}  // namespace

size_t workspace_bytes_w4a8(int m, int /*n*/, int k, int r) { return W4A8Workspace(m, k, r).bytes; }

bool can_run_w4a8(const svdq_linear_params& p) {
    return p.format == SVDQ_FORMAT_W4A8 && p.k <= kMaxQuantizeK;
}

cudaError_t launch_quantize_w4a8(const svdq_linear_params& p, cudaStream_t stream) {
    if (p.m == 0) return cudaSuccess;
    if (p.k > kShortK && can_quantize_once(p)) return launch_quantize_once(p, stream);
    if (p.r > 0) {
        if (const cudaError_t e = launch_lora_down(p, stream)) return e;
    }
    return launch_quantize_rows(p, stream);
}

}  // namespace svdq::sm90
