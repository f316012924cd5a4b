// Split K: several CTAs make one tile, each from its part of the steps.
//
// Each puts its sums into the workspace and counts itself in; the last one there adds up all parts in the order
// of the splits, its own among them, whoever is last: the same bits every time. Its count wraps to 0, so the
// workspace is ready for the next call of gemm; quantize has set it to 0 before the first.
//
//   parts     [tile][split][m16 tile][n8 tile][thread] x 4 floats, as the threads hold them
//   counters  [tile]
#pragma once

#include "tile.cuh"
#include "workspace.h"

namespace svdq::portable {

// False for a CTA that is done; true for the last one of its tile, which then holds the whole sum.
template <class Tile>
__device__ __forceinline__ bool sum_splits(const GemmArgs& p, float (&acc)[Tile::kMt][Tile::kNt][4]) {
    constexpr int kUnits = Tile::kMt * Tile::kNt * Tile::kThreads;  // of 4 floats
    __shared__ bool last;
    float4* const parts =
        reinterpret_cast<float4*>(p.parts) + static_cast<int64_t>(blockIdx.x) * gridDim.y * kUnits + threadIdx.x;
#pragma unroll
    for (int mt = 0; mt < Tile::kMt; ++mt)
#pragma unroll
        for (int nt = 0; nt < Tile::kNt; ++nt) {
            const float (&d)[4] = acc[mt][nt];
            __stcg(parts + blockIdx.y * kUnits + (mt * Tile::kNt + nt) * Tile::kThreads,
                   make_float4(d[0], d[1], d[2], d[3]));
        }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicInc(p.counters + blockIdx.x, gridDim.y - 1) == gridDim.y - 1;
    __syncthreads();
    if (!last) return false;
    __threadfence();
#pragma unroll 1
    for (uint32_t split = 0; split < gridDim.y; ++split)
#pragma unroll
        for (int mt = 0; mt < Tile::kMt; ++mt)
#pragma unroll
            for (int nt = 0; nt < Tile::kNt; ++nt) {
                const float4 v = __ldcg(parts + split * kUnits + (mt * Tile::kNt + nt) * Tile::kThreads);
                const float part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[mt][nt][i] = split == 0 ? part[i] : acc[mt][nt][i] + part[i];
            }
    return true;
}

}  // namespace svdq::portable
