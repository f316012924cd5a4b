// quantize for few tokens: t = x . lora_down^T.
//
// Grid: R / 8. A CTA makes 8 columns of t; its 16 warps take the 64-element blocks of K in turn (warp w:
// blocks w, w + 16, ...), kAhead of them loaded together, because this kernel is one memory latency long or
// it is too long. It may be launched beside the kernel before it: until that one has ended, lora_down only goes
// into the L2.
//
//   A = x, 16 rows (M of them real)   lane (g, c): elements 8c..8c+7 of each 32, rows g and g + 8
//   B = lora_down, 8 rows             the same elements, row g
//
// Numerics: fp32 over a warp's blocks in ascending order, then the 16 partial sums in warp order, one rounding.
#pragma once

#include "../common/octet.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/mma.cuh"

namespace svdq::gemv {

struct DownArgs {
    const uint16_t* x;          // [M, K] act dtype, M <= 16
    const uint16_t* lora_down;  // [R, K]
    uint16_t* t;                // [M, R]
    int m, k, r;
};

constexpr int kDownWarps = 16;

template <class T>
__global__ void __launch_bounds__(32 * kDownWarps, 1) lora_down_kernel(const DownArgs p) {
    __shared__ float partial[kDownWarps][16][8];  // [warp][token][rank]
    const uint16_t* const rows = p.lora_down + static_cast<int64_t>(blockIdx.x) * 8 * p.k;
#pragma unroll 1
    for (int i = 32 * threadIdx.x; i < 8 * p.k; i += 32 * 32 * kDownWarps) ptx::prefetch_l2(rows + i);
    ptx::wait_for_previous();
    ptx::launch_dependents();  // gemv_kernel relies on the wait above for all it reads but t
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int g = lane / 4, c = lane % 4;
    const int blocks = p.k / 64;
    const uint16_t* const x_top = p.x + static_cast<int64_t>(g) * p.k + 8 * c;
    const uint16_t* const x_bottom = x_top + static_cast<int64_t>(8) * p.k;
    const uint16_t* const down = rows + static_cast<int64_t>(g) * p.k + 8 * c;
    const bool top_valid = g < p.m, bottom_valid = g + 8 < p.m;

    constexpr int kAhead = 3;
    float acc[4] = {};
    for (int block0 = warp; block0 < blocks; block0 += kAhead * kDownWarps) {
        Octet top[kAhead][2], bottom[kAhead][2], w[kAhead][2];
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int block = block0 + i * kDownWarps;
                const bool valid = block < blocks;
                const int k0 = 64 * block + 32 * h;
                w[i][h] = load_octet<true>(down + k0, valid);
                top[i][h] = load_octet<true>(x_top + k0, valid && top_valid);
                bottom[i][h] = load_octet<true>(x_bottom + k0, valid && bottom_valid);
            }
#pragma unroll
        for (int i = 0; i < kAhead; ++i)
#pragma unroll
            for (int s = 0; s < 4; ++s) {
                const int h = s / 2, lo = 2 * (s % 2);
                const uint32_t a[4] = {top[i][h].pair[lo], bottom[i][h].pair[lo], top[i][h].pair[lo + 1],
                                       bottom[i][h].pair[lo + 1]};
                ptx::mma_16bit(T(), acc, a, w[i][h].pair[lo], w[i][h].pair[lo + 1]);
            }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) partial[warp][g + 8 * (i / 2)][2 * c + i % 2] = acc[i];
    __syncthreads();
    const int token = threadIdx.x / 4, pair = threadIdx.x % 4;
    if (token >= p.m) return;
    float lo = 0.f, hi = 0.f;
#pragma unroll
    for (int i = 0; i < kDownWarps; ++i) {
        lo += partial[i][token][2 * pair];
        hi += partial[i][token][2 * pair + 1];
    }
    const int64_t at = static_cast<int64_t>(token) * p.r + 8 * blockIdx.x + 2 * pair;
    *reinterpret_cast<uint32_t*>(p.t + at) = Act16<T>::to_pair(lo, hi);
}

}  // namespace svdq::gemv
