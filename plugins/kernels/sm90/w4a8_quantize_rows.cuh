// quantize_rows_w4a8 (sm_90a): quantize without the low-rank branch, x -> x_q, x_scale (int8 per token)
//
// A CTA takes `rows` whole rows of x, straight from global memory into registers and out again; a quad of lanes takes a
// block of 128 columns of a row:
//
//                K ->  128 columns each
//              +--------+--------+--------+--
//       row 0  | quad 0 | quad 1 | quad 2 |          max |x^| of a row: atomicMax in shared memory
//              +--------+--------+--------+--        (exact, so in any order), one barrier, then codes
//       row 1  | ...
//              +--------+--------+--------+--
//
//   Many small CTAs that know nothing of each other hide each other's latencies.
//
// Operands:
//   x        [M, K]   act dtype   16-byte loads; 64 contiguous bytes per quad
//   act_mul  [K]      act dtype   16-byte loads, from the L1 after the first CTA
//   x_q      [M, Kp]  i8          w4a8_layout.h order, 32-byte sectors
//   x_scale  [M]      f32
// Numerics: w4a8_codes.cuh.
//
// `beside`: the kernel before is lora_down_kernel of the same linear. It has waited for everything before it and shares
// nothing with this one, so both run side by side; only the last CTA waits for its end, so that whoever waits for this
// kernel's end has waited for both.
#pragma once

#include "../ptx/barrier.cuh"
#include "w4a8_codes.cuh"

namespace svdq::sm90 {

struct QuantizeRowsArgs {
    const uint16_t* x;        // [M, K] act dtype
    const uint16_t* act_mul;  // [K] act dtype
    uint8_t* x_q;             // [M, Kp]
    float* x_scale;           // [M]
    int m, k;
    int rows;  // of a CTA
    bool beside;
};

constexpr int kMaxRowThreads = 1024;
constexpr int kMaxRows = kMaxRowThreads / 4;  // of a CTA
static_assert(kMaxRowThreads / 4 * kBlockK >= kMaxQuantizeK, "a CTA holds a row of every length");

// The lane's 32 act_mul values, two per register, from its first column k0; some other value beyond K, where x is 0.
__device__ __forceinline__ void load_act_mul(uint32_t (&out)[16], const uint16_t* act_mul, int k0, int k) {
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const uint4 s = ptx::load_global_nc_16(act_mul + min(k0 + 32 * q, k - 8));
        out[4 * q + 0] = s.x, out[4 * q + 1] = s.y, out[4 * q + 2] = s.z, out[4 * q + 3] = s.w;
    }
}

template <class T>
__global__ void __launch_bounds__(kMaxRowThreads, 1)
    quantize_rows_w4a8_kernel(const __grid_constant__ QuantizeRowsArgs p) {
    __shared__ uint32_t row_max[kMaxRows];
    const int quad = static_cast<int>(threadIdx.x) / 4, j = static_cast<int>(threadIdx.x) % 4;
    const int blocks = (p.k + kBlockK - 1) / kBlockK;
    const int first_row = static_cast<int>(blockIdx.x) * p.rows;
    const int row = quad / blocks, block = quad - row * blocks;  // the last warp may have no row
    const bool valid = row < min(p.rows, p.m - first_row);
    if (static_cast<int>(threadIdx.x) < p.rows) row_max[threadIdx.x] = 0;
    if (!p.beside) ptx::wait_for_previous();
    ptx::launch_dependents();

    uint32_t xh[16], factors[16];
    const int k0 = block * kBlockK + 8 * j;
    const uint16_t* from = p.x + static_cast<size_t>(first_row + row) * static_cast<size_t>(p.k) + k0;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const uint4 v = ptx::load_global_stream_16(from + 32 * q, valid && k0 + 32 * q < p.k);
        xh[4 * q + 0] = v.x, xh[4 * q + 1] = v.y, xh[4 * q + 2] = v.z, xh[4 * q + 3] = v.w;
    }
    load_act_mul(factors, p.act_mul, k0, p.k);
    __syncthreads();  // row_max is zero
#pragma unroll
    for (int e = 0; e < 16; ++e) xh[e] = multiply_pairs<T>(xh[e], factors[e]);
    const uint32_t top = max_lanes<4>(max_pattern(running_max<T>(0, xh)));
    if (j == 0 && valid) atomicMax(&row_max[row], top);
    __syncthreads();
    const RowScale scale = row_scale<T>(row_max[valid ? row : 0]);
    const size_t out_row = static_cast<size_t>(first_row + row);
    if (valid && block == 0 && j == 0) p.x_scale[out_row] = scale.stored;
    store_codes<T>(p.x_q + (out_row * static_cast<size_t>(blocks) + static_cast<size_t>(block)) * kBlockK, valid, xh,
                   scale);
    if (p.beside && blockIdx.x == gridDim.x - 1) ptx::wait_for_previous();
}

}  // namespace svdq::sm90
