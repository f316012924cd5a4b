// The compiled gemm_w4a8 kernels: one per token tile, dtype and activation class.
#pragma once

#include "w4a8_gemm.cuh"

namespace svdq::sm90 {

using GemmKernel = void (*)(GemmArgs);

constexpr int kTokenTiles[] = {256, 224, 192, 160, 128, 64};

template <typename T, int BN>
GemmKernel pick_act(ActClass act) {
    switch (act) {
        case ActClass::kUnary: return gemm_w4a8_kernel<BN, T, ActClass::kUnary>;
        case ActClass::kGeglu: return gemm_w4a8_kernel<BN, T, ActClass::kGeglu>;
        default: return gemm_w4a8_kernel<BN, T, ActClass::kNone>;
    }
}

template <typename T>
GemmKernel pick_kernel(int bn, ActClass act) {
    switch (bn) {
        case 256: return pick_act<T, 256>(act);
        case 224: return pick_act<T, 224>(act);
        case 192: return pick_act<T, 192>(act);
        case 160: return pick_act<T, 160>(act);
        case 128: return pick_act<T, 128>(act);
        default: return pick_act<T, 64>(act);
    }
}

GemmKernel gemm_w4a8_f16(int bn, ActClass act);
GemmKernel gemm_w4a8_bf16(int bn, ActClass act);

}  // namespace svdq::sm90
