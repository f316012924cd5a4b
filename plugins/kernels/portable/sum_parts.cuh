// t = sum of its parts, in order, one rounding: what the CTAs of mlp_epilogue.cuh have left.
//
//   parts  [tiles][count] f32  ->  t [count] act dtype,   count = M . R, a multiple of 16
//
// A thread adds up four neighbours; deterministic.
#pragma once

#include "../common/launch.h"
#include "../common/types.cuh"
#include "../ptx/barrier.cuh"

namespace svdq::portable {

struct SumArgs {
    const float* parts;
    uint16_t* t;
    int64_t count;
    int tiles;
};

constexpr int kSumThreads = 128;

template <class T>
__global__ void __launch_bounds__(kSumThreads) sum_parts_kernel(const SumArgs p) {
    constexpr int kAhead = 8;  // parts whose loads are in flight together
    ptx::launch_dependents();
    ptx::wait_for_previous();
    const int64_t at = (static_cast<int64_t>(blockIdx.x) * kSumThreads + threadIdx.x) * 4;
    if (at >= p.count) return;
    float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll 1
    for (int tile = 0; tile < p.tiles; tile += kAhead) {
        float4 part[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            part[i] = make_float4(0.f, 0.f, 0.f, 0.f);
            if (tile + i < p.tiles)
                part[i] = __ldcg(reinterpret_cast<const float4*>(p.parts + (tile + i) * p.count + at));
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) sum.x += part[i].x, sum.y += part[i].y, sum.z += part[i].z, sum.w += part[i].w;
    }
    *reinterpret_cast<uint2*>(p.t + at) = make_uint2(Act16<T>::to_pair(sum.x, sum.y), Act16<T>::to_pair(sum.z, sum.w));
}

template <class T>
cudaError_t launch_sum_parts(const SumArgs& args, bool overlap, cudaStream_t stream) {
    const int64_t blocks = (args.count + 4 * kSumThreads - 1) / (4 * kSumThreads);
    if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    return launch_kernel(sum_parts_kernel<T>, {dim3(static_cast<unsigned>(blocks)), kSumThreads, 0, overlap}, stream,
                         args);
}

}  // namespace svdq::portable
