// The compiled gemm_w4a8 kernels: one per token tile, dtype and activation class.
#pragma once

#include "w4a8_gemm.cuh"

namespace svdq::sm90 {

using GemmKernel = void (*)(GemmArgs);

struct CompiledTile {
    int wgs, bn, smem;
    int stage, end;  // cycles of a stage of K and of a tile's end with R = 32, fitted to H200 timings
};

constexpr CompiledTile kTiles[] = {
    {3, 192, GemmTile<3, 192>::kSmem, 1290, 6490}, {2, 256, GemmTile<2, 256>::kSmem, 1111, 5080},
    {2, 160, GemmTile<2, 160>::kSmem, 812, 3650},  {2, 128, GemmTile<2, 128>::kSmem, 736, 3120},
    {2, 64, GemmTile<2, 64>::kSmem, 648, 2200},
};

template <typename T, int kWgs, int BN>
GemmKernel pick_act(ActClass act) {
    switch (act) {
        case ActClass::kUnary:
            return gemm_w4a8_kernel<kWgs, BN, T, ActClass::kUnary>;
        case ActClass::kGeglu:
            return gemm_w4a8_kernel<kWgs, BN, T, ActClass::kGeglu>;
        default:
            return gemm_w4a8_kernel<kWgs, BN, T, ActClass::kNone>;
    }
}

// bn: one of kTiles.
template <typename T>
GemmKernel pick_kernel(int bn, ActClass act) {
    switch (bn) {
        case 192:
            return pick_act<T, 3, 192>(act);
        case 256:
            return pick_act<T, 2, 256>(act);
        case 160:
            return pick_act<T, 2, 160>(act);
        case 128:
            return pick_act<T, 2, 128>(act);
        default:
            return pick_act<T, 2, 64>(act);
    }
}

GemmKernel gemm_w4a8_f16(int bn, ActClass act);
GemmKernel gemm_w4a8_bf16(int bn, ActClass act);

}  // namespace svdq::sm90
