// What a linear may apply to its sum, in fp32, as precise as libdevice. NaN stays NaN. activation_fast.cuh has the same
// in fewer instructions, for kernels whose tensor cores would wait for these.
#pragma once

#include <cuda_runtime_api.h>

namespace svdq {

struct Exact {
    static __device__ __forceinline__ float gelu(float v) { return 0.5f * v * (1.f + erff(v * 0.70710678118654752f)); }

    static __device__ __forceinline__ float gelu_tanh(float v) {
        const float inner = 0.79788456080286536f * (v + 0.044715f * v * v * v);
        return 0.5f * v * (1.f + tanhf(inner));
    }

    static __device__ __forceinline__ float silu(float v) { return __fdiv_rn(v, 1.f + expf(-v)); }
};

}  // namespace svdq
