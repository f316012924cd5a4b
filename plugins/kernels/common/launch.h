// One way to launch a kernel that takes one struct. Host code.
#pragma once

#include <algorithm>

#ifndef SVDQ_EMULATION
#include <cuda_runtime.h>
#endif

namespace svdq {

struct LaunchConfig {
    dim3 grid;
    int threads;
    size_t shared_bytes = 0;  // dynamic ones
    // The kernel may start before the one before it in the stream has ended (sm_90 and later); it then waits itself,
    // ptx::wait_for_previous().
    bool overlap = false;
    int cluster = 0;  // CTAs along x that form one (sm_90 and later); 0: the kernel knows no clusters

    // What the runtime takes; `attributes` must outlive it.
    cudaLaunchConfig_t with(cudaLaunchAttribute (&attributes)[2], cudaStream_t stream) const {
        cudaLaunchConfig_t config = {};
        config.gridDim = grid;
        config.blockDim = dim3(static_cast<unsigned>(threads));
        config.dynamicSmemBytes = shared_bytes;
        config.stream = stream;
        config.attrs = attributes;
        if (cluster > 0) {
            cudaLaunchAttribute& a = attributes[config.numAttrs++];
            a.id = cudaLaunchAttributeClusterDimension;
            a.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
        }
        if (overlap) {
            cudaLaunchAttribute& a = attributes[config.numAttrs++];
            a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
            a.val.programmaticStreamSerializationAllowed = 1;
        }
        return config;
    }
};

// What a kernel has to be allowed before its launch.
inline cudaError_t allow(const void* kernel, const LaunchConfig& how) {
    constexpr size_t kSharedBytes = 48 * 1024;  // allowed without asking
    constexpr int kPortableCluster = 8;
    if (how.shared_bytes > kSharedBytes) {
        const cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(how.shared_bytes));
        if (e != cudaSuccess) return e;
    }
    if (how.cluster <= kPortableCluster) return cudaSuccess;
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

template <class Args>
cudaError_t launch_kernel(void (*kernel)(Args), const LaunchConfig& how, cudaStream_t stream, const Args& args) {
    if (const cudaError_t e = allow(reinterpret_cast<const void*>(kernel), how); e != cudaSuccess) return e;
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config = how.with(attributes, stream);
#ifdef SVDQ_EMULATION
    return emulation::run(config.gridDim, config.blockDim, config.dynamicSmemBytes, [&] { kernel(args); });
#else
    return cudaLaunchKernelEx(&config, kernel, args);
#endif
}

#ifndef SVDQ_EMULATION
// For a persistent kernel: as many clusters as run at once, and no more than there are tiles. how.grid is ignored.
template <class Args>
cudaError_t launch_persistent(void (*kernel)(Args), LaunchConfig how, int tiles, cudaStream_t stream,
                              const Args& args) {
    const void* const function = reinterpret_cast<const void*>(kernel);
    how.grid = dim3(static_cast<unsigned>(how.cluster));
    if (const cudaError_t e = allow(function, how); e != cudaSuccess) return e;
    cudaLaunchAttribute attributes[2] = {};
    const cudaLaunchConfig_t config = how.with(attributes, stream);
    int clusters = 0;
    if (const cudaError_t e = cudaOccupancyMaxActiveClusters(&clusters, function, &config); e != cudaSuccess) return e;
    how.grid = dim3(static_cast<unsigned>(how.cluster * std::max(1, std::min(clusters, tiles))));
    return launch_kernel(kernel, how, stream, args);
}
#endif

}  // namespace svdq
