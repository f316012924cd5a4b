// One way to launch a kernel that takes one struct.
#pragma once

#ifndef SVDQ_EMULATION
#include <cuda_runtime.h>
#endif

namespace svdq {

// `overlap`: the kernel may start before the one before it in the stream has ended (sm_90 and later); it then
// waits itself, ptx::wait_for_previous().
template <class Args>
cudaError_t launch_kernel(void (*kernel)(Args), dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                          const Args& args, bool overlap = false) {
    if (shared_bytes > 48 * 1024) {
        const cudaError_t e =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
        if (e != cudaSuccess) return e;
    }
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = overlap ? 1 : 0;
#ifdef SVDQ_EMULATION
    return emulation::run(config.gridDim, config.blockDim, config.dynamicSmemBytes, [&] { kernel(args); });
#else
    return cudaLaunchKernelEx(&config, kernel, args);
#endif
}

}  // namespace svdq
