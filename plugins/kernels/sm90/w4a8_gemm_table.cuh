// The tiles of gemm_w4a8: a row of kTiles is compiled for every dtype and activation class, and considered for all
// shapes.
#pragma once

#include <iterator>
#include <utility>

#include "w4a8_gemm.cuh"

namespace svdq::sm90 {

using GemmKernel = void (*)(W4A8GemmArgs);

struct TileRow {
    int wgs, bn;     // consumer warpgroups, of 64 weight rows each; tokens
    int stage, end;  // cycles of a stage of K and of a tile's end with R = 32, fitted to H200 timings
};

constexpr TileRow kTiles[] = {
    {3, 192, 1290, 6490}, {2, 256, 1111, 5080}, {2, 160, 812, 3650}, {2, 128, 736, 3120}, {2, 64, 648, 2200},
};
constexpr int kNumTiles = static_cast<int>(std::size(kTiles));

// What is compiled of a row.
struct CompiledTile {
    GemmKernel none, unary, gelu_gate, silu_gate;  // by ActClass
    int threads, smem;
};

template <class T, int kRow>
constexpr CompiledTile compiled() {
    constexpr int kWgs = kTiles[kRow].wgs, kBn = kTiles[kRow].bn;
    return {gemm_w4a8_kernel<kWgs, kBn, T, ActClass::kNone>,
            gemm_w4a8_kernel<kWgs, kBn, T, ActClass::kUnary>,
            gemm_w4a8_kernel<kWgs, kBn, T, ActClass::kGeluGate>,
            gemm_w4a8_kernel<kWgs, kBn, T, ActClass::kSiluGate>,
            GemmTile<kWgs, kBn>::kThreads,
            GemmTile<kWgs, kBn>::kSmem};
}

template <class T, int... kRow>
CompiledTile compiled_of(int row, std::integer_sequence<int, kRow...>) {
    constexpr CompiledTile kCompiled[] = {compiled<T, kRow>()...};
    return kCompiled[row];
}

// A file per dtype: they take long to compile.
CompiledTile gemm_w4a8_f16(int row);
CompiledTile gemm_w4a8_bf16(int row);

}  // namespace svdq::sm90
