// quantize_any_w4a8 (sm_90a): kernel (a) for every shape, one tile of rows per cluster. Slower than
// quantize_w4a8, which takes what fits its shared memory. x -> x_q, x_scale (int8 per token), t = x .
// lora_down^T; x is read once.
//
// A cluster of C = 1..16 CTAs owns kTokens rows of x and splits K: CTA c has blocks c*B .. c*B+B-1 of 128
// columns.
//
//               K ->   CTA 0          CTA 1          ...    CTA C-1
//             +--------------+--------------+--     --+--------------+
//   kTokens   |   B x 128    |   B x 128    |         |   the rest   |   x stays in shared memory
//             +--------------+--------------+--     --+--------------+
//
//   warps 0..7   pass 1, as blocks of x land: smooth, absmax. Exchange of the maxima through distributed
//                shared memory. Pass 2, from shared memory again: smooth, codes in the K order of
//                w4a8_layout.h.
//   warps 8..11  t^T += lora_down . x^T (wgmma, 64 ranks x kTokens; lora_down through a ring of 2 blocks),
//                then the partial t of the CTAs are summed in CTA order while warps 0..7 do pass 2.
//   Ranks beyond 64 take further rounds over the x that is still in shared memory.
//
// Tasks of warps, numerics of the codes: w4a8_quantize_common.cuh.
// t: fp32, K ascending inside a CTA's part, then parts in CTA order; rounded once. Deterministic.
// Tried and dropped: x^ kept in registers between the passes (fixes B at compile time, spills at K = 12288).
#pragma once

#include "w4a8_quantize_common.cuh"
#include "wgmma.cuh"

namespace svdq::sm90 {

struct QuantizeAnyArgs {
    CUtensorMap x, lora_down;
    const void* act_mul;  // [K] act dtype
    uint8_t* x_q;         // [M, Kp]
    float* x_scale;       // [M]
    void* t;              // [M, R] act dtype
    int m, k, r;
    int blocks_per_cta;  // B
    int lora_box_rows;   // min(R, 64)
};

constexpr int kQuantizeAnyThreads = 384;
constexpr int kQuantizeAnyWarps = 8;  // that smooth and quantize
constexpr int kLoraRing = 2;          // blocks of lora_down in flight
constexpr int kRankRound = 64;        // ranks per round over x

// x | ring of lora_down | partial t [kTokens][box rows + 4] f32 | maxima [64] u32 | barriers.
// wgmma always reads 64 rows of lora_down: rows beyond the box are other data and end in accumulators nobody
// reads;
// `reach` keeps them inside the allocation.
struct QuantizeAnySmem {
    int x, lora_box, partial_row, partial, maxima, barriers, bytes;

    __host__ __device__ QuantizeAnySmem(int tokens, int blocks, int box_rows) {
        x = 0;
        lora_box = box_rows * 128;
        const int lora = blocks * 2 * tokens * 128;
        partial = lora + kLoraRing * 2 * lora_box;
        partial_row = (box_rows + 4) * 4;
        const int end = partial + (box_rows > 0 ? tokens * partial_row : 0);
        const int reach = partial + (box_rows > 0 ? (64 - box_rows) * 128 : 0);
        maxima = end > reach ? end : reach;
        barriers = maxima + 64 * 4;
        bytes = barriers + 8 * (blocks + kLoraRing) + 1024;  // 1024: alignment
    }
};

template <typename T, int kTokens>
__global__ void __launch_bounds__(kQuantizeAnyThreads, 2)
    quantize_any_w4a8_kernel(const __grid_constant__ QuantizeAnyArgs p) {
    using A = Act16<T>;
    constexpr int kRowGroups = kTokens / 8;
    constexpr int kSplit =
        kQuantizeAnyWarps / kRowGroups;  // warps that share a row group, dealing its blocks out
    constexpr int kBox = kTokens * 128;  // 64 columns of x
    constexpr int kAcc = kTokens / 2;

    extern __shared__ uint8_t smem_raw[];
    const QuantizeAnySmem layout(kTokens, p.blocks_per_cta, p.lora_box_rows);
    const uint32_t x_sm = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const uint32_t lora_box = uint32_t(layout.lora_box);
    const uint32_t part_sm = x_sm + uint32_t(layout.partial);
    const uint32_t lora_sm = part_sm - kLoraRing * 2 * lora_box;
    const uint32_t part_row = uint32_t(layout.partial_row);
    const uint32_t max_sm = x_sm + uint32_t(layout.maxima);
    const uint32_t x_bar = x_sm + uint32_t(layout.barriers);
    const uint32_t lora_bar = x_bar + 8 * uint32_t(p.blocks_per_cta);

    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int cta = int(blockIdx.x),
              ctas = int(gridDim.x);  // the cluster spans the whole x dimension of the grid
    const int first_row = int(blockIdx.y) * kTokens;
    const int all_blocks = (p.k + kBlockK - 1) / kBlockK;
    const int first_block = cta * p.blocks_per_cta;
    const int blocks = min(p.blocks_per_cta, all_blocks - first_block);

    const auto load_lora = [&](int b, int round) {  // block b of this CTA, ranks 64*round ...
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
    launch_dependents();  // after the wait: the next kernel may read weights early
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

    if (warp >= kQuantizeAnyWarps) {  // ---- t ----
        const int thread = int(threadIdx.x) - kQuantizeAnyWarps * 32;
        const int warp_in_wg = warp - kQuantizeAnyWarps, g = lane / 4, t = lane % 4;
        uint32_t lora_phase = 0;  // bit s: parity of ring slot s
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
                    for (int q = 0; q < 8; ++q) {  // 16 columns each
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
                    named_barrier(1, 128);  // all four warps have read ring slot s
                    if (thread == 0 && b + kLoraRing < blocks) load_lora(b + kLoraRing, round);
                }
#pragma unroll
                for (int i = 0; i < kAcc; ++i) {  // partial t^T -> [token][rank]
                    const int rank = warp_in_wg * 16 + g + 8 * (i / 2 % 2),
                              token = 8 * (i / 4) + 2 * t + i % 2;
                    if (rank < p.lora_box_rows) {
                        sts_f32(part_sm + uint32_t(token) * part_row + uint32_t(rank) * 4, acc[i]);
                    }
                }
            }
            __syncwarp();
            cluster_arrive();
            cluster_wait();
            if (p.r > 0) {                              // this CTA's share, CTAs in order
                const int quads = p.lora_box_rows / 4;  // of ranks, per token
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
                        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(p.t) + size_t(row) * size_t(p.r) +
                                                  column) = out;
                    }
                }
            }
            __syncwarp();
            cluster_arrive();
            cluster_wait();
        }
    } else {  // ---- x_q, x_scale ----
        const int row_group = warp % kRowGroups, deal = warp / kRowGroups;
        const int j = lane % 4, row = 8 * row_group + task_row(lane);
        const auto* act_mul = static_cast<const uint16_t*>(p.act_mul);
        const auto read = [&](int b, uint32_t (&out)[16]) {
            uint32_t factors[16];
            load_act_mul(factors, act_mul, (first_block + b) * kBlockK + 8 * j, p.k);
            smooth<T>(out, x_sm + uint32_t(2 * b) * kBox, kBox, row, j, factors);
        };
        uint32_t xh[16];

        // pass 1
        uint32_t top = 0;
        for (int b = deal; b < blocks; b += kSplit) {
            mbar_wait(x_bar + 8 * b, 0);
            read(b, xh);
            top = running_max<T>(top, xh);
        }
        uint32_t row_max = quad_max(max_pattern(top));
        if (j == 0) sts_u32(max_sm + uint32_t(deal * kTokens + row) * 4, row_max);
        __syncwarp();
        cluster_arrive();
        cluster_wait();
        row_max = 0;
        for (int i = j; i < kSplit * ctas; i += 4) {  // the row's four lanes share the CTAs out
            const uint32_t at = max_sm + uint32_t(i % kSplit * kTokens + row) * 4;
            row_max = max(row_max, ld_dsmem_u32(dsmem_addr(at, uint32_t(i / kSplit))));
        }
        row_max = quad_max(row_max);
        __syncwarp();
        cluster_arrive();

        // pass 2
        const RowScale scale = row_scale<T>(row_max);
        const int out_row = first_row + row;
        if (cta == 0 && deal == 0 && j == 0 && out_row < p.m) p.x_scale[out_row] = scale.stored;
        uint8_t* codes = p.x_q + (size_t(out_row) * size_t(all_blocks) + size_t(first_block)) * kBlockK;
        for (int b = deal; b < blocks; b += kSplit) {
            read(b, xh);
            store_codes<T>(codes + size_t(b) * kBlockK, out_row < p.m, xh, scale);
        }
        __syncwarp();
        cluster_wait();
        for (int round = 1; round * kRankRound < p.r; ++round) {  // the other warps' barriers
            for (int i = 0; i < 2; ++i) {
                cluster_arrive();
                cluster_wait();
            }
        }
    }
}

}  // namespace svdq::sm90
