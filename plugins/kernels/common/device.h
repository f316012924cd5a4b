// What launchers ask about the current device, and what kernels are compiled for.
#pragma once

#include <cuda_runtime_api.h>

namespace svdq {

inline cudaError_t device_attribute(int* value, cudaDeviceAttr attribute) {
    int device = 0;
    const cudaError_t e = cudaGetDevice(&device);
    return e != cudaSuccess ? e : cudaDeviceGetAttribute(value, attribute, device);
}

inline cudaError_t multiprocessors(int* count) { return device_attribute(count, cudaDevAttrMultiProcessorCount); }

// CTAs per SM to allocate registers for. sm_120 has shared memory for fewer, and its code takes a few registers more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int min_ctas(int wanted) { return wanted > 1 ? wanted - 1 : 1; }
#else
constexpr int min_ctas(int wanted) { return wanted; }
#endif

}  // namespace svdq
