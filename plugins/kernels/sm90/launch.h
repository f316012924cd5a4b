// One way to launch the kernels of sm_90a that run in clusters; they may start before the kernel before has ended, and wait
// themselves (wait_prerequisites()). Kernels without clusters: ../common/launch.h.
#pragma once

#include <cuda_runtime.h>

namespace svdq::sm90 {

// `ctas` per cluster along the grid's x. grid.x == 0: a persistent kernel, grid.y tiles for as many clusters as run at once.
template <typename Args>
cudaError_t launch_clusters(void (*kernel)(Args), const Args& args, int ctas, dim3 grid, int threads, int smem,
                            cudaStream_t stream) {
    cudaLaunchAttribute attrs[2] = {};
    attrs[0].id = cudaLaunchAttributeClusterDimension;
    attrs[0].val.clusterDim = {unsigned(ctas), 1, 1};
    attrs[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attrs[1].val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(unsigned(threads));
    config.dynamicSmemBytes = size_t(smem);
    config.stream = stream;
    config.attrs = attrs;
    config.numAttrs = 2;
    cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    if (!e && ctas > 8) e = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (!e && grid.x == 0) {
        config.gridDim = dim3(unsigned(ctas));
        int clusters = 0;
        e = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
        const unsigned tiles = grid.y;
        const unsigned used = unsigned(clusters) < tiles ? unsigned(clusters) : tiles;
        config.gridDim = dim3(unsigned(ctas) * (used > 0 ? used : 1));
    }
    return e ? e : cudaLaunchKernelEx(&config, kernel, args);
}

}  // namespace svdq::sm90
