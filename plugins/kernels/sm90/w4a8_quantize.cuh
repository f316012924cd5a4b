// quantize_w4a8 (sm_90a): x -> x_q, x_scale (int8 per token) and t = x . lora_down^T, one read of x
//
// A cluster of C = 1..16 CTAs owns kTokens rows of x and splits K: CTA c has blocks c*B .. c*B+B-1 of 128 columns.
//
//               K ->   CTA 0          CTA 1          ...    CTA C-1
//             +--------------+--------------+--     --+--------------+
//   kTokens   |   B x 128    |   B x 128    |         |   the rest   |    x stays in shared memory, 128B swizzle
//             +--------------+--------------+--     --+--------------+
//
//   warps 0..7   pass 1, as blocks of x land: smooth, absmax. Exchange of the maxima through distributed shared
//                memory. Pass 2, from shared memory again: smooth, codes in the K order of w4a8_layout.h.
//   warps 8..11  t^T += lora_down . x^T (wgmma, 64 ranks x kTokens; lora_down through a ring of 2 blocks), then the
//                partial t of the CTAs are summed in CTA order while warps 0..7 do pass 2.
//   Ranks beyond 64 take further rounds over the x that is still in shared memory.
//
//   A warp's task is 8 rows of one block: lane -> j = lane%4, row = 4*(lane/4%2) + lane/8. It reads four 16-byte
//   chunks (k = 32*t + 8*j .. +7, t = 0..3) and so owns the contiguous bytes 32j .. 32j+31 of x_q's block.
//   Rows r and r+4 in one quarter-warp make these reads free of bank conflicts under the swizzle.
//
// Numerics: x^ = round(x * act_mul) (one 16-bit multiply rounds the same), s = absmax * f32(1/127), code =
//   rint(x^ * (1/s)), all IEEE fp32. absmax < 2^-120: codes 0, s = 1. NaN or Inf in x^: codes 0, s = NaN.
//   t: fp32, K ascending inside a CTA's part, then parts in CTA order; rounded once. Deterministic.
// Tried and dropped: x^ kept in registers between the passes (fixes B at compile time, spills at K = 12288).
#pragma once

#include "epilogue.cuh"
#include "ptx.cuh"
#include "w4a8_layout.h"
#include "wgmma.cuh"

namespace svdq::sm90 {

struct QuantizeArgs {
    CUtensorMap x, lora_down;
    const void* act_mul;      // [K] act dtype
    uint8_t* x_q;             // [M, Kp]
    float* x_scale;           // [M]
    void* t;                  // [M, R] act dtype
    int m, k, r;
    int blocks_per_cta;       // B
    int lora_box_rows;        // min(R, 64)
};

constexpr int kQuantizeThreads = 384;
constexpr int kQuantizeWarps = 8;                 // that smooth and quantize
constexpr int kLoraRing = 2;                      // blocks of lora_down in flight
constexpr int kRankRound = 64;                    // ranks per round over x
constexpr float kZeroAbsmax = 7.52316384526264e-37f;   // 2^-120

// x | ring of lora_down | partial t [kTokens][box rows + 4] f32 | maxima [64] u32 | barriers.
// wgmma always reads 64 rows of lora_down: rows beyond the box are other data and end in accumulators nobody reads;
// `reach` keeps them inside the allocation.
struct QuantizeSmem {
    int x, lora_box, partial_row, partial, maxima, barriers, bytes;

    __host__ __device__ QuantizeSmem(int tokens, int blocks, int box_rows) {
        x = 0;
        lora_box = box_rows * 128;
        const int lora = blocks * 2 * tokens * 128;
        partial = lora + kLoraRing * 2 * lora_box;
        partial_row = (box_rows + 4) * 4;
        const int end = partial + (box_rows > 0 ? tokens * partial_row : 0);
        const int reach = partial + (box_rows > 0 ? (64 - box_rows) * 128 : 0);
        maxima = end > reach ? end : reach;
        barriers = maxima + 64 * 4;
        bytes = barriers + 8 * (blocks + kLoraRing) + 1024;   // 1024: alignment
    }
};

template <typename T, int kTokens>
__global__ void __launch_bounds__(kQuantizeThreads, 2) quantize_w4a8_kernel(const __grid_constant__ QuantizeArgs p) {
    using A = Act16<T>;
    constexpr int kRowGroups = kTokens / 8;
    constexpr int kSplit = kQuantizeWarps / kRowGroups;       // warps that share a row group, dealing its blocks out
    constexpr int kBox = kTokens * 128;                       // 64 columns of x
    constexpr int kAcc = kTokens / 2;

    extern __shared__ uint8_t smem_raw[];
    const QuantizeSmem layout(kTokens, p.blocks_per_cta, p.lora_box_rows);
    const uint32_t x_sm = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const uint32_t lora_box = uint32_t(layout.lora_box);
    const uint32_t part_sm = x_sm + uint32_t(layout.partial);
    const uint32_t lora_sm = part_sm - kLoraRing * 2 * lora_box;
    const uint32_t part_row = uint32_t(layout.partial_row);
    const uint32_t max_sm = x_sm + uint32_t(layout.maxima);
    const uint32_t x_bar = x_sm + uint32_t(layout.barriers);
    const uint32_t lora_bar = x_bar + 8 * uint32_t(p.blocks_per_cta);

    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int cta = int(blockIdx.x), ctas = int(gridDim.x);   // the cluster spans the whole x dimension of the grid
    const int first_row = int(blockIdx.y) * kTokens;
    const int all_blocks = (p.k + kBlockK - 1) / kBlockK;
    const int first_block = cta * p.blocks_per_cta;
    const int blocks = min(p.blocks_per_cta, all_blocks - first_block);

    const auto load_lora = [&](int b, int round) {            // block b of this CTA, ranks 64*round ...
        const uint32_t bar = lora_bar + 8 * (b % kLoraRing);
        const uint32_t dst = lora_sm + uint32_t(b % kLoraRing) * 2 * lora_box;
        const int column = (first_block + b) * kBlockK;
        mbar_arrive_expect_tx(bar, 2 * lora_box);
        tma_load_2d(dst, &p.lora_down, column, round * kRankRound, bar);
        tma_load_2d(dst + lora_box, &p.lora_down, column + 64, round * kRankRound, bar);
    };
    if (threadIdx.x == 0) {
        for (int b = 0; b < p.blocks_per_cta; ++b) mbar_init(x_bar + 8 * b, 1);
        for (int s = 0; s < kLoraRing; ++s) mbar_init(lora_bar + 8 * s, 1);
        fence_mbar_init();
    }
    wait_prerequisites();
    launch_dependents();                                      // after the wait: the next kernel may read weights early
    if (threadIdx.x == 0) {
        for (int b = 0; b < blocks; ++b) {
            mbar_arrive_expect_tx(x_bar + 8 * b, 2 * kBox);
            const uint32_t dst = x_sm + uint32_t(b) * 2 * kBox;
            tma_load_2d(dst, &p.x, (first_block + b) * kBlockK, first_row, x_bar + 8 * b);
            tma_load_2d(dst + kBox, &p.x, (first_block + b) * kBlockK + 64, first_row, x_bar + 8 * b);
            if (p.r > 0 && b < kLoraRing) load_lora(b, 0);
        }
    }
    __syncthreads();

    if (warp >= kQuantizeWarps) {  // ---- t ----
        const int thread = int(threadIdx.x) - kQuantizeWarps * 32;
        const int warp_in_wg = warp - kQuantizeWarps, g = lane / 4, t = lane % 4;
        uint32_t lora_phase = 0;                              // bit s: parity of ring slot s
        const int rounds = p.r > kRankRound ? (p.r + kRankRound - 1) / kRankRound : 1;
        for (int round = 0; round < rounds; ++round) {
            if (p.r > 0) {
                if (round > 0 && thread == 0) {
                    for (int b = 0; b < min(blocks, kLoraRing); ++b) load_lora(b, round);
                }
                float acc[kAcc];
#pragma unroll
                for (int i = 0; i < kAcc; ++i) acc[i] = 0.0f;
                for (int b = 0; b < blocks; ++b) {
                    const int s = b % kLoraRing;
                    mbar_wait(x_bar + 8 * b, 0);
                    mbar_wait(lora_bar + 8 * s, (lora_phase >> s) & 1);
                    lora_phase ^= 1u << s;
                    wgmma_fence();
#pragma unroll
                    for (int q = 0; q < 8; ++q) {             // 16 columns each
                        const uint64_t down = smem_desc(lora_sm + (2 * s + q / 4) * lora_box) + 2 * (q % 4);
                        const uint64_t x = smem_desc(x_sm + (2 * b + q / 4) * kBox) + 2 * (q % 4);
                        if constexpr (A::kInf == 0x7c00) {
                            WgmmaSs<kTokens>::f16(acc, down, x);
                        } else {
                            WgmmaSs<kTokens>::bf16(acc, down, x);
                        }
                    }
                    wgmma_commit();
                    wgmma_wait<0>();
                    named_barrier(1, 128);                    // all four warps have read ring slot s
                    if (thread == 0 && b + kLoraRing < blocks) load_lora(b + kLoraRing, round);
                }
#pragma unroll
                for (int i = 0; i < kAcc; ++i) {              // partial t^T -> [token][rank]
                    const int rank = warp_in_wg * 16 + g + 8 * (i / 2 % 2), token = 8 * (i / 4) + 2 * t + i % 2;
                    if (rank < p.lora_box_rows) {
                        sts_f32(part_sm + uint32_t(token) * part_row + uint32_t(rank) * 4, acc[i]);
                    }
                }
            }
            __syncwarp();
            cluster_arrive();
            cluster_wait();
            if (p.r > 0) {                                    // this CTA's share, CTAs in order
                const int quads = p.lora_box_rows / 4;        // of ranks, per token
                const int share = (kTokens * quads + ctas - 1) / ctas;
                const int last = min((cta + 1) * share, kTokens * quads);
                for (int i = cta * share + thread; i < last; i += 128) {
                    const int token = i / quads, rank = 4 * (i - token * quads);
                    const uint32_t at = part_sm + uint32_t(token) * part_row + uint32_t(rank) * 4;
                    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
                    for (int c = 0; c < ctas; ++c) {
                        const float4 v = ld_dsmem_f32x4(dsmem_addr(at, uint32_t(c)));
                        sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
                    }
                    const int row = first_row + token, column = round * kRankRound + rank;
                    if (row < p.m && column < p.r) {
                        const uint2 out = {A::pack_wide(sum.x, sum.y), A::pack_wide(sum.z, sum.w)};
                        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(p.t) + size_t(row) * size_t(p.r) + column) = out;
                    }
                }
            }
            __syncwarp();
            cluster_arrive();
            cluster_wait();
        }
    } else {  // ---- x_q, x_scale ----
        const int row_group = warp % kRowGroups, deal = warp / kRowGroups;
        const int j = lane % 4, row = 8 * row_group + 4 * (lane / 4 % 2) + lane / 8;
        const auto smooth = [&](int b, uint32_t (&out)[16]) {   // the lane's 32 values of block b, two per register
            const int k0 = (first_block + b) * kBlockK + 8 * j;
            uint4 v[4], s[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const uint32_t chunk = uint32_t(4 * (q & 1) + j) ^ uint32_t(row & 7);
                v[q] = lds128(x_sm + uint32_t(2 * b + q / 2) * kBox + uint32_t(row) * 128 + chunk * 16);
                s[q] = {0, 0, 0, 0};
                if (k0 + 32 * q < p.k) {
                    s[q] = __ldg(reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(p.act_mul) + k0 + 32 * q));
                }
            }
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                out[4 * q + 0] = A::mul(v[q].x, s[q].x);
                out[4 * q + 1] = A::mul(v[q].y, s[q].y);
                out[4 * q + 2] = A::mul(v[q].z, s[q].z);
                out[4 * q + 3] = A::mul(v[q].w, s[q].w);
            }
        };
        const auto quad_max = [](uint32_t v) {                  // over the four lanes of a row
            v = max(v, __shfl_xor_sync(0xffffffffu, v, 1));
            return max(v, __shfl_xor_sync(0xffffffffu, v, 2));
        };
        uint32_t xh[16];

        // pass 1: |x^| as 16-bit patterns, ordered like the magnitudes; NaN above Inf above the rest
        uint32_t top = 0;
        for (int b = deal; b < blocks; b += kSplit) {
            mbar_wait(x_bar + 8 * b, 0);
            smooth(b, xh);
#pragma unroll
            for (int e = 0; e < 16; ++e) top = __vmaxu2(top, xh[e] & 0x7fff7fffu);
        }
        uint32_t row_max = quad_max(max(top & 0xffffu, top >> 16));
        if (j == 0) sts_u32(max_sm + uint32_t(deal * kTokens + row) * 4, row_max);
        __syncwarp();
        cluster_arrive();
        cluster_wait();
        row_max = 0;
        for (int i = j; i < kSplit * ctas; i += 4) {            // the row's four lanes share the CTAs out
            const uint32_t at = max_sm + uint32_t(i % kSplit * kTokens + row) * 4;
            row_max = max(row_max, ld_dsmem_u32(dsmem_addr(at, uint32_t(i / kSplit))));
        }
        row_max = quad_max(row_max);
        __syncwarp();
        cluster_arrive();

        // pass 2
        const bool finite = row_max < A::kInf;
        const float absmax = A::to_float(uint16_t(row_max));
        const float scale = finite && absmax >= kZeroAbsmax ? absmax * (1.0f / 127.0f) : 1.0f;
        const float inverse = __frcp_rn(scale);
        const uint32_t keep = finite ? 0xffffffffu : 0u;
        const int out_row = first_row + row;
        if (cta == 0 && deal == 0 && j == 0 && out_row < p.m) {
            p.x_scale[out_row] = finite ? scale : __int_as_float(0x7fc00000);
        }
        uint8_t* codes = p.x_q + (size_t(out_row) * size_t(all_blocks) + size_t(first_block)) * kBlockK + 32 * j;
        for (int b = deal; b < blocks; b += kSplit) {
            smooth(b, xh);
            uint32_t even[4], odd[4];
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                uint32_t lo[4], hi[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    // Adding 1.5 * 2^23 rounds half to even and leaves the code in the low byte.
                    const float2 v = A::unpack(xh[4 * q + e]);
                    lo[e] = __float_as_uint(__fadd_rn(__fmul_rn(v.x, inverse), 12582912.0f));
                    hi[e] = __float_as_uint(__fadd_rn(__fmul_rn(v.y, inverse), 12582912.0f));
                }
                const auto bytes = [&](const uint32_t(&c)[4]) {
                    const uint32_t ab = __byte_perm(c[0], c[1], 0x0040), cd = __byte_perm(c[2], c[3], 0x0040);
                    return __byte_perm(ab, cd, 0x5410) & keep;
                };
                even[q] = bytes(lo);
                odd[q] = bytes(hi);
            }
            if (out_row < p.m) {
                uint4* dst = reinterpret_cast<uint4*>(codes + size_t(b) * kBlockK);
                dst[0] = make_uint4(even[0], even[1], even[2], even[3]);
                dst[1] = make_uint4(odd[0], odd[1], odd[2], odd[3]);
            }
        }
        __syncwarp();
        cluster_wait();
        for (int round = 1; round * kRankRound < p.r; ++round) {   // the other warps' barriers
            for (int i = 0; i < 2; ++i) {
                cluster_arrive();
                cluster_wait();
            }
        }
    }
}

}  // namespace svdq::sm90
