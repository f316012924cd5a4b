// quantize_w4a8 (sm_90a): kernel (a), x -> x_q, x_scale (int8 per token) and t = x . lora_down^T; x is read
// once
//
// Persistent clusters of C = 1, 2, 4, 8 or 16 CTAs split K: CTA c owns 128-blocks c*B .. c*B+B-1 of every
// row, keeps its part of lora_down in shared memory for good, and streams tiles of kTokens rows through a
// ring.
//
//               K ->   CTA 0          CTA 1          ...    CTA C-1
//             +--------------+--------------+--     --+--------------+
//   kTokens   |   B x 128    |   B x 128    |         |   the rest   |   tile i      pass 2: codes
//             +--------------+--------------+--     --+--------------+
//   kTokens   |              |              |         |              |   tile i+1    pass 1: absmax, t
//             +--------------+--------------+--     --+--------------+
//             |              |              |         |              |   tile i+2 .. being loaded
//
//   warps 0..15   pass 1 of tile i+1: smooth, absmax of the CTA's columns, st.async of the row maxima to all
//                 CTAs; pass 2 of tile i: the row maxima of all CTAs -> scale, codes.
//   warps 16..19  partial t^T = lora_down . x^T (wgmma, 64 ranks at a time x kTokens), st.async of each
//                 token's ranks to the CTA that owns it; one tile later that CTA sums the C parts in order.
//   warp 20       loads.
//   No CTA waits for the exchange of the tile it has just read. The buffers of the exchange are 4 deep and
//   need no credits: a CTA sends for tile i only after it has received tile i-2 from every peer, which a peer
//   sends after it has used up tile i-4. (Order in a peer: send i-2 follows use of i-4.)
//
// Tasks of warps, numerics of the codes: w4a8_quantize_common.cuh.
// Tried and dropped: 24 warps with act_mul in shared memory (12 % slower on an H200).
// t: fp32, K ascending inside a CTA's part, then parts in CTA order; rounded once. Deterministic.
#pragma once

#include "w4a8_quantize_common.cuh"
#include "wgmma.cuh"

namespace svdq::sm90 {

struct QuantizeArgs {
    CUtensorMap x, lora_down;
    const uint16_t* act_mul;  // [K] act dtype
    uint8_t* x_q;             // [M, Kp]
    float* x_scale;           // [M]
    uint16_t* t;              // [M, R] act dtype
    int m, k, r;
    int ctas;            // C
    int blocks_per_cta;  // B
    int stages;
};

constexpr int kQuantizeWarps = 16;  // that smooth and quantize
constexpr int kQuantizeThreads = (kQuantizeWarps + 4 + 1) * 32;
constexpr int kExchangeDepth = 4;
constexpr int kMaxTasks = 2;  // blocks of a row group that one warp may own
template <int kTokens>
inline constexpr int kMaxBlocksPerCta = kMaxTasks * kQuantizeWarps * 8 / kTokens;

// x ring | lora_down [chunk of 64 ranks][B][2 halves] | t parts [depth][C][kTokens/C][R] f32 | maxima
// [depth][C][kTokens] | maxima of the warps [2][16][8] | barriers. wgmma always reads 64 rows of lora_down;
// rows beyond R are what follows in shared memory and end in accumulators nobody reads.
struct QuantizeSmem {
    int stage, lora_box, lora, t, t_slot, maxima, warp_maxima, barriers, bytes;

    __host__ __device__ QuantizeSmem(int tokens, int ctas, int blocks, int stages, int r) {
        const int chunks = (r + 63) / 64;
        stage = blocks * 2 * tokens * 128;
        lora_box = (r < 64 ? r : 64) * 128;
        lora = stages * stage;
        t = lora + chunks * blocks * 2 * lora_box;
        t_slot = tokens * r * 4;
        maxima = t + kExchangeDepth * t_slot;
        warp_maxima = maxima + kExchangeDepth * ctas * tokens * 4;
        barriers = warp_maxima + 2 * kQuantizeWarps * 8 * 4;
        int end = barriers + 8 * (2 * stages + 2 * kExchangeDepth + 1);
        const int reach = t + 64 * 128;
        if (end < reach) end = reach;
        bytes = end + 1024;  // alignment
    }
};

template <typename T, int kTokens>
__global__ void __launch_bounds__(kQuantizeThreads, 1)
    quantize_w4a8_kernel(const __grid_constant__ QuantizeArgs p) {
    constexpr int kRowGroups = kTokens / 8;
    constexpr int kSplit =
        kQuantizeWarps / kRowGroups;     // warps that share a row group, dealing its blocks out
    constexpr int kBox = kTokens * 128;  // 64 columns of x

    extern __shared__ uint8_t smem_raw[];
    const QuantizeSmem layout(kTokens, p.ctas, p.blocks_per_cta, p.stages, p.r);
    const uint32_t x_sm = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const uint32_t lora_sm = x_sm + uint32_t(layout.lora);
    const uint32_t full = x_sm + uint32_t(layout.barriers);
    const uint32_t empty = full + 8 * uint32_t(p.stages);
    const uint32_t max_bar = empty + 8 * uint32_t(p.stages);
    const uint32_t t_bar = max_bar + 8 * kExchangeDepth;
    const uint32_t lora_bar = t_bar + 8 * kExchangeDepth;

    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
    const int ctas = p.ctas, cta = int(blockIdx.x) % ctas;
    const int first_tile = int(blockIdx.x) / ctas, tile_step = int(gridDim.x) / ctas;
    const int tiles = (p.m + kTokens - 1) / kTokens;
    const int all_blocks = (p.k + kBlockK - 1) / kBlockK;
    const int first_block = cta * p.blocks_per_cta;
    const int blocks = max(0, min(p.blocks_per_cta, all_blocks - first_block));
    const int chunks = (p.r + 63) / 64;  // of 64 ranks

    if (threadIdx.x == 0) {
        for (int s = 0; s < p.stages; ++s) {
            mbar_init(full + 8 * s, 1);
            mbar_init(empty + 8 * s, kQuantizeWarps + (p.r > 0 ? 4 : 0));
        }
        for (int d = 0; d < kExchangeDepth; ++d) {
            mbar_init(max_bar + 8 * d, 1);
            mbar_init(t_bar + 8 * d, 1);
        }
        mbar_init(lora_bar, 1);
        fence_mbar_init();
    }
    __syncthreads();
    cluster_arrive();
    cluster_wait();

    uint32_t stage = 0, phase = 0;
    const auto advance = [&] {
        if (++stage == uint32_t(p.stages)) stage = 0, phase ^= 1;
    };

    if (warp == kQuantizeWarps + 4) {  // ---- loads ----
        if (lane == 0) {
            if (p.r > 0) {
                mbar_arrive_expect_tx(lora_bar, uint32_t(chunks * blocks * 2 * layout.lora_box));
                uint32_t dst = lora_sm;
                for (int chunk = 0; chunk < chunks; ++chunk) {
                    for (int half = 0; half < 2 * blocks; ++half, dst += uint32_t(layout.lora_box)) {
                        tma_load_2d(dst, &p.lora_down, first_block * kBlockK + 64 * half, 64 * chunk,
                                    lora_bar);
                    }
                }
            }
            wait_prerequisites();
            launch_dependents();
            for (int tile = first_tile; tile < tiles; tile += tile_step, advance()) {
                mbar_wait(empty + 8 * stage, phase ^ 1);
                mbar_arrive_expect_tx(full + 8 * stage, uint32_t(blocks * 2 * kBox));
                uint32_t dst = x_sm + stage * uint32_t(layout.stage);
                for (int half = 0; half < 2 * blocks; ++half, dst += kBox) {
                    tma_load_2d(dst, &p.x, first_block * kBlockK + 64 * half, tile * kTokens,
                                full + 8 * stage);
                }
            }
        }
    } else if (warp >= kQuantizeWarps) {  // ---- t ----
        wait_prerequisites();             // t may still be read by the kernel before
        if (p.r > 0) {
            const int thread = int(threadIdx.x) - kQuantizeWarps * 32;
            const int share = kTokens / ctas;  // tokens of a tile that this CTA sums
            const uint32_t t_sm = x_sm + uint32_t(layout.t);
            const auto sum_parts = [&](int i, int tile) {  // tile number i of this CTA
                const uint32_t d = uint32_t(i) % kExchangeDepth;
                mbar_wait(t_bar + 8 * d, (uint32_t(i) / kExchangeDepth) & 1);
                for (int e = thread; e < share * p.r; e += 128) {
                    const int token = e / p.r, rank = e - token * p.r;
                    const int row = tile * kTokens + cta * share + token;
                    float sum = 0.0f;
                    for (int c = 0; c < ctas; ++c) {
                        sum +=
                            lds_f32(t_sm + d * uint32_t(layout.t_slot) + 4 * uint32_t(c * share * p.r + e));
                    }
                    if (row < p.m)
                        p.t[size_t(row) * size_t(p.r) + rank] = uint16_t(Act16<T>::pack_wide(sum, sum));
                }
            };
            mbar_wait(lora_bar, 0);
            int i = 0;
            for (int tile = first_tile; tile < tiles; tile += tile_step, ++i) {
                const uint32_t d = uint32_t(i) % kExchangeDepth;
                if (thread == 0) mbar_arrive_expect_tx(t_bar + 8 * d, uint32_t(layout.t_slot));
                mbar_wait(full + 8 * stage, phase);
                for (int chunk = 0; chunk < chunks; ++chunk) {
                    float acc[kTokens / 2];
#pragma unroll
                    for (int e = 0; e < kTokens / 2; ++e) acc[e] = 0.0f;
                    uint32_t down_at = lora_sm + uint32_t(chunk * blocks * 2 * layout.lora_box);
                    uint32_t x_at = x_sm + stage * uint32_t(layout.stage);
                    for (int b = 0; b < blocks; ++b) {
                        wgmma_fence();
#pragma unroll
                        for (int q = 0; q < 8; ++q) {  // 16 columns each
                            const uint64_t down = smem_desc(down_at + q / 4 * layout.lora_box) + 2 * (q % 4);
                            const uint64_t x = smem_desc(x_at + q / 4 * kBox) + 2 * (q % 4);
                            if constexpr (Act16<T>::kInf == 0x7c00) {
                                WgmmaSs<kTokens>::f16(acc, down, x);
                            } else {
                                WgmmaSs<kTokens>::bf16(acc, down, x);
                            }
                        }
                        wgmma_commit();
                        wgmma_wait<0>();
                        down_at += 2 * uint32_t(layout.lora_box);
                        x_at += 2 * kBox;
                    }
                    const int first_rank = 64 * chunk + (warp - kQuantizeWarps) * 16 + lane / 4;
#pragma unroll
                    for (int e = 0; e < kTokens / 2; ++e) {
                        const int rank = first_rank + 8 * (e / 2 % 2),
                                  token = 8 * (e / 4) + 2 * (lane % 4) + e % 2;
                        const int owner = token / share;
                        if (rank < p.r) {
                            const uint32_t slot =
                                (uint32_t(cta * share + token - owner * share) * uint32_t(p.r) + rank) * 4;
                            st_async_u32(
                                dsmem_addr(t_sm + d * uint32_t(layout.t_slot) + slot, uint32_t(owner)),
                                __float_as_uint(acc[e]), dsmem_addr(t_bar + 8 * d, uint32_t(owner)));
                        }
                    }
                }
                __syncwarp();
                if (lane == 0) mbar_arrive(empty + 8 * stage);
                if (i > 0) sum_parts(i - 1, tile - tile_step);
                advance();
            }
            if (i > 0) sum_parts(i - 1, first_tile + (i - 1) * tile_step);
        }
    } else {                   // ---- x_q, x_scale ----
        wait_prerequisites();  // x_q may still be read by the kernel before
        const int row_group = warp % kRowGroups, deal = warp / kRowGroups;
        const int j = lane % 4, row = 8 * row_group + task_row(lane);
        const uint32_t max_sm = x_sm + uint32_t(layout.maxima),
                       warp_max_sm = x_sm + uint32_t(layout.warp_maxima);
        uint32_t factors[kMaxTasks][16];  // act_mul of the warp's blocks
#pragma unroll
        for (int q = 0; q < kMaxTasks; ++q) {
            const int b = deal + q * kSplit;
            load_act_mul(factors[q], p.act_mul, (first_block + b) * kBlockK + 8 * j, b < blocks ? p.k : 0);
        }
        const auto read = [&](uint32_t s, int q, uint32_t (&out)[16]) {
            const uint32_t block_sm =
                x_sm + s * uint32_t(layout.stage) + uint32_t(deal + q * kSplit) * 2 * kBox;
            smooth<T>(out, block_sm, kBox, row, j, factors[q]);
        };
        uint32_t last_stage = 0;
        int i = 0;
        for (int tile = first_tile;; tile += tile_step, ++i) {
            if (tile < tiles) {  // pass 1 of tile i
                mbar_wait(full + 8 * stage, phase);
                uint32_t top = 0;
#pragma unroll
                for (int q = 0; q < kMaxTasks; ++q) {
                    if (deal + q * kSplit < blocks) {
                        uint32_t xh[16];
                        read(stage, q, xh);
                        top = running_max<T>(top, xh);
                    }
                }
                top = quad_max(max_pattern(top));
                const uint32_t mine = warp_max_sm + uint32_t((i & 1) * kQuantizeWarps * 8) * 4;
                if (j == 0) sts_u32(mine + uint32_t(deal * kTokens + row) * 4, top);
                named_barrier(1 + row_group, 32 * kSplit);
                const uint32_t d = uint32_t(i) % kExchangeDepth;
                if (threadIdx.x == 0) mbar_arrive_expect_tx(max_bar + 8 * d, uint32_t(ctas * kTokens * 4));
                const int peer = deal * 4 + j;  // the warps and quads share the peers out
                if (peer < ctas) {
                    top = 0;
#pragma unroll
                    for (int w = 0; w < kSplit; ++w)
                        top = max(top, lds_u32(mine + uint32_t(w * kTokens + row) * 4));
                    const uint32_t slot = max_sm + ((d * uint32_t(ctas) + cta) * kTokens + row) * 4;
                    st_async_u32(dsmem_addr(slot, uint32_t(peer)), top,
                                 dsmem_addr(max_bar + 8 * d, uint32_t(peer)));
                }
                __syncwarp();
            }
            if (i > 0) {  // pass 2 of tile i-1
                const uint32_t d = uint32_t(i - 1) % kExchangeDepth;
                mbar_wait(max_bar + 8 * d, (uint32_t(i - 1) / kExchangeDepth) & 1);
                uint32_t top = 0;
                for (int c = j; c < ctas; c += 4) {
                    top = max(top, lds_u32(max_sm + ((d * uint32_t(ctas) + c) * kTokens + row) * 4));
                }
                const RowScale scale = row_scale<T>(quad_max(top));
                const int out_row = (tile - tile_step) * kTokens + row;
                if (cta == 0 && deal == 0 && j == 0 && out_row < p.m) p.x_scale[out_row] = scale.stored;
                uint8_t* codes =
                    p.x_q + (size_t(out_row) * size_t(all_blocks) + size_t(first_block)) * kBlockK;
#pragma unroll
                for (int q = 0; q < kMaxTasks; ++q) {
                    const int b = deal + q * kSplit;
                    if (b < blocks) {
                        uint32_t xh[16];
                        read(last_stage, q, xh);
                        store_codes<T>(codes + size_t(b) * kBlockK, out_row < p.m, xh, scale);
                    }
                }
                __syncwarp();
                if (lane == 0) mbar_arrive(empty + 8 * last_stage);
            }
            if (tile >= tiles) break;
            last_stage = stage;
            advance();
        }
    }
    __syncwarp();
    cluster_arrive();  // peers may still be sending to this CTA
    cluster_wait();
}

}  // namespace svdq::sm90
