// The middle of an MLP: fc1's gemm, which quantizes the hidden, and the sum of its parts of fc2's t.
#pragma once

#include "gemm.cuh"
#include "kernels.h"
#include "mlp_epilogue.cuh"
#include "sum_parts.cuh"

namespace svdq::portable {

using HiddenLauncher = cudaError_t (*)(const HiddenGemmArgs&, int splits, bool overlap, cudaStream_t);

// Of a row of kTiles; nullptr where it is not compiled with this epilogue.
template <int kFormat, class F, class T, int kRow>
constexpr HiddenLauncher hidden_launcher() {
    using Tile = TileAt<kRow>;
    if constexpr (kTiles[kRow].hidden) return launch_gemm_tile<F, T, Tile, QuantizeHidden<kFormat, T, Tile>>;
    return nullptr;
}

template <int kFormat, class F, class T, int... kRow>
HiddenLauncher hidden_launcher_of(int tile, std::integer_sequence<int, kRow...>) {
    constexpr HiddenLauncher kLaunch[] = {hidden_launcher<kFormat, F, T, kRow>()...};
    return kLaunch[tile];
}

// F is the format with the act dtype T it was made for.
template <int kFormat, class F, class T>
cudaError_t launch_gemm_quantize(const HiddenArgs& args, cudaStream_t stream) {
    HiddenGemmArgs g = {};
    static_cast<GemmArgs&>(g) = gemm_args(args.fc1);
    g.next = quant_args<kFormat>(args.fc2);
    g.t_parts = args.t_parts;
    const bool overlap = args.fc1.overlap;
    const cudaError_t e = hidden_launcher_of<kFormat, F, T>(args.tile, EveryTile())(g, 1, overlap, stream);
    if (e != cudaSuccess || g.next.r == 0) return e;
    const int parts = static_cast<int>(hidden_parts({args.fc1.p, args.fc2.p}, args.tile));
    const SumArgs sum = {g.t_parts, g.next.t, int64_t{g.m} * g.next.r, parts};
    return launch_sum_parts<T>(sum, overlap, stream);
}

}  // namespace svdq::portable
