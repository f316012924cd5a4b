// Chooses what quantize_w4a8 is made up of for a shape.
#include "w4a8_quantize.h"

#include "w4a8.h"

namespace svdq::sm90 {
namespace {

// Short rows: two kernels side by side, x read twice, are done before the clusters of the other have exchanged their
// maxima. (Measured: benchmarks/README.md.)
constexpr int kShortK = 2304;

}  // namespace

cudaError_t quantize_w4a8(const LinearArgs& args, cudaStream_t stream) {
    if (args.p.k > kShortK && can_quantize_once(args.p)) return quantize_once(args, stream);
    if (args.p.r > 0)
        if (const cudaError_t e = lora_down(args, stream); e != cudaSuccess) return e;
    return quantize_rows(args, stream);
}

}  // namespace svdq::sm90
