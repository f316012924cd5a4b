// The middle of an MLP: fc1's kernel (b), which quantizes the hidden, and the sum of its parts of fc2's t.
#pragma once

#include "gemm.cuh"
#include "launch.h"
#include "mlp_epilogue.cuh"
#include "sum_parts.cuh"

namespace svdq::sm80 {

// F is the format with the act dtype T it was made for.
template <int kFormat, class F, class T>
cudaError_t launch_gemm_quantize(const HiddenArgs& args, cudaStream_t stream) {
    HiddenGemmArgs g = {};
    static_cast<GemmArgs&>(g) = gemm_args(args.fc1);
    g.next = quant_args<kFormat>(args.fc2);
    g.t_parts = args.t_parts;
    const bool large = args.tile == TileKind::kLarge, overlap = args.fc1.overlap;
    const cudaError_t e =
        large ? launch_gemm_tile<F, T, LargeTile, QuantizeHidden<kFormat, T, LargeTile>>(g, 1, overlap, stream)
              : launch_gemm_tile<F, T, MediumTile, QuantizeHidden<kFormat, T, MediumTile>>(g, 1, overlap, stream);
    if (e != cudaSuccess || g.next.r == 0) return e;
    const SumArgs sum = {g.t_parts, g.next.t, int64_t{g.m} * g.next.r, args.t_tiles};
    return launch_sum_parts<T>(sum, overlap, stream);
}

}  // namespace svdq::sm80
