// What launchers ask about the current device. Host code.
#pragma once

#include <cuda_runtime_api.h>

namespace svdq {

inline cudaError_t device_attribute(int* value, cudaDeviceAttr attribute) {
    int device = 0;
    const cudaError_t e = cudaGetDevice(&device);
    return e != cudaSuccess ? e : cudaDeviceGetAttribute(value, attribute, device);
}

inline cudaError_t multiprocessors(int* count) { return device_attribute(count, cudaDevAttrMultiProcessorCount); }

}  // namespace svdq
