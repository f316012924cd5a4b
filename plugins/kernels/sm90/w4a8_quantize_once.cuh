// quantize_once_w4a8 (sm_90a): quantize for ranks up to 32, x -> x_q, x_scale (int8 per token) and t = x . lora_down^T;
// x is read once
//
// Persistent clusters of C = 1, 2, 4, 8 or 16 CTAs split K: CTA c owns 128-blocks c*B .. c*B+B-1 of every
// row, keeps its part of lora_down in shared memory for good, and streams tiles of 16 rows through a ring.
//
//               K ->   CTA 0          CTA 1          ...    CTA C-1
//             +--------------+--------------+--     --+--------------+
//      16     |   B x 128    |   B x 128    |         |   the rest   |   tile i      pass 2: codes
//             +--------------+--------------+--     --+--------------+
//      16     |              |              |         |              |   tile i+1    pass 1: absmax, t
//             +--------------+--------------+--     --+--------------+
//             |              |              |         |              |   tile i+2 .. being loaded
//
//   warps 0..11   pass 1 of tile i+1: smooth, absmax of the CTA's columns, st.async of the row maxima to all
//                 CTAs; x^ stays in registers; pass 2 of tile i: the row maxima of all CTAs -> scale, codes.
//   warps 12..15  partial t = x . lora_down^T (mma.sync; each warp has 32 columns of every block), summed over the
//                 four, st.async of each token's ranks to the CTA that owns it
//   warp 16       loads
//   warps 17..19  sum the C parts of the CTA's tokens, in order
//   No CTA waits for the exchange of the tile it has just read. The buffers of the exchange are 4 deep and
//   need no credits: a CTA sends for tile i only after it has received and used tile i-2 from every peer, which a
//   peer sends after it has used up tile i-4.
//
// A smoothing warp's task is 8 rows of one 128-block of x, which lies in shared memory as two boxes of 64 columns, rows
// of 128 bytes, 128-byte swizzle. Lane l has j = l%4 of row 4*(l/4%2) + l/8: rows r and r+4 in one quarter-warp make
// the 16-byte reads free of bank conflicts. Numerics of the codes: w4a8_codes.cuh.
// Tried and dropped: t by wgmma (m64 is twice R = 32, its chain of 8 per block longer than both passes); 24 warps with
// act_mul in shared memory (12 % slower on an H200).
// t: fp32, a warp's columns, then the four warps of a CTA, then CTAs, always in the same order; rounded once.
#pragma once

#include "../ptx/barrier.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/registers.cuh"
#include "../ptx/tma.cuh"
#include "w4a8_codes.cuh"

namespace svdq::sm90 {

struct QuantizeOnceArgs {
    CUtensorMap x, lora_down;
    const uint16_t* lora_down_rows;  // the same memory
    const uint16_t* act_mul;         // [K] act dtype
    uint8_t* x_q;                    // [M, Kp]
    float* x_scale;                  // [M]
    uint16_t* t;                     // [M, R] act dtype
    int m, k, r;
    int ctas;            // C
    int blocks_per_cta;  // B
    int stages;
};

constexpr int kQuantizeWarps = 12;  // that smooth and quantize
constexpr int kOnceThreads = (kQuantizeWarps + 4 + 4) * 32;
constexpr int kQuantizeRegs = 112, kPartsRegs = 88, kLoadRegs = 56;  // the CTA starts with 640 * 96
constexpr int kSumWarps = 3;
constexpr int kExchangeDepth = 4;
constexpr int kOnceRanks = 32;  // at most
enum class OnceBarrier : uint32_t { kRowGroup = 1, kParts = 8, kActMul = 9 };
constexpr int kMaxTasks = 2;     // blocks of a row group that one warp may own
constexpr int kTileTokens = 16;  // rows of a tile: one m16 tile of the mma
constexpr int kMaxBlocksPerCta = kMaxTasks * (kQuantizeWarps * 8 / kTileTokens);

// Every CTA sums some tokens' t: what it receives paces what it sends.
inline bool tokens_for_all(int ctas) { return (ctas - 1) * ((kTileTokens + ctas - 1) / ctas) < kTileTokens; }

// x ring | lora_down [B][2 halves][R] | t parts [depth][C][share of tokens][R] f32 | maxima
// [depth][C][kTileTokens] | maxima of the warps [2][12][8] | parts of the t warps [4][3][lane] 4 f32 |
// act_mul [B][128] | barriers. 32 rows of lora_down are always read; those beyond R are what follows in shared memory
// and end in accumulators nobody reads.
struct QuantizeOnceSmem {
    int stage, lora_box, lora, share, t, t_slot, maxima, warp_maxima, scratch, act_mul, barriers, bytes;

    __host__ __device__ QuantizeOnceSmem(int ctas, int blocks, int stages, int r) {
        stage = blocks * 2 * kTileTokens * 128;
        lora_box = r * 128;
        lora = stages * stage;
        share = (kTileTokens + ctas - 1) / ctas;  // tokens of a tile whose t a CTA sums; the last CTA may have fewer
        t = lora + blocks * 2 * lora_box;
        t_slot = ctas * share * r * 4;
        maxima = t + kExchangeDepth * t_slot;
        warp_maxima = maxima + kExchangeDepth * ctas * kTileTokens * 4;
        scratch = warp_maxima + 2 * kQuantizeWarps * 8 * 4;
        act_mul = scratch + (r > 0 ? 12 * 512 : 0);
        barriers = act_mul + blocks * 256;
        bytes = barriers + 8 * (2 * stages + 3 * kExchangeDepth + 1) + 1024;  // alignment
    }
};

__device__ __forceinline__ int task_row(int lane) { return 4 * (lane / 4 % 2) + lane / 8; }

// The lane's 32 values of x^. block_sm: the block's first box; row: row of the tile; mul_sm: the block's 128 act_mul.
template <class T>
__device__ __forceinline__ void smooth(uint32_t (&out)[16], uint32_t block_sm, uint32_t box_bytes, int row, int j,
                                       uint32_t mul_sm) {
    uint4 mul[4];
#pragma unroll
    for (int q = 0; q < 4; ++q) mul[q] = ptx::load_shared_16(mul_sm + static_cast<uint32_t>(64 * q + 16 * j));
#pragma unroll
    for (int q = 0; q < 4; ++q) {
        const uint32_t chunk = static_cast<uint32_t>(4 * (q & 1) + j) ^ static_cast<uint32_t>(row & 7);
        const uint4 v = ptx::load_shared_16(block_sm + static_cast<uint32_t>(q / 2) * box_bytes +
                                            static_cast<uint32_t>(row) * 128 + chunk * 16);
        out[4 * q + 0] = multiply_pairs<T>(v.x, mul[q].x), out[4 * q + 1] = multiply_pairs<T>(v.y, mul[q].y);
        out[4 * q + 2] = multiply_pairs<T>(v.z, mul[q].z), out[4 * q + 3] = multiply_pairs<T>(v.w, mul[q].w);
    }
}

template <class T>
__global__ void __launch_bounds__(kOnceThreads, 1)
    quantize_once_w4a8_kernel(const __grid_constant__ QuantizeOnceArgs p) {
    constexpr int kRowGroups = kTileTokens / 8;
    constexpr int kSplit = kQuantizeWarps / kRowGroups;  // warps that share a row group, dealing its blocks out
    constexpr int kBox = kTileTokens * 128;              // 64 columns of x

    extern __shared__ uint8_t smem_raw[];
    const QuantizeOnceSmem layout(p.ctas, p.blocks_per_cta, p.stages, p.r);
    const uint32_t x_sm = (ptx::smem_addr(smem_raw) + 1023u) & ~1023u;
    const uint32_t lora_sm = x_sm + static_cast<uint32_t>(layout.lora);
    const uint32_t full = x_sm + static_cast<uint32_t>(layout.barriers);
    const uint32_t empty = full + 8 * static_cast<uint32_t>(p.stages);
    const uint32_t max_bar = empty + 8 * static_cast<uint32_t>(p.stages);
    const uint32_t t_bar = max_bar + 8 * kExchangeDepth;
    const uint32_t summed_bar = t_bar + 8 * kExchangeDepth;
    const uint32_t lora_bar = summed_bar + 8 * kExchangeDepth;

    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int ctas = p.ctas, cta = static_cast<int>(blockIdx.x) % ctas;
    const int first_tile = static_cast<int>(blockIdx.x) / ctas, tile_step = static_cast<int>(gridDim.x) / ctas;
    const int tiles = (p.m + kTileTokens - 1) / kTileTokens;
    const int all_blocks = (p.k + kBlockK - 1) / kBlockK;
    const int first_block = cta * p.blocks_per_cta;
    const int blocks = max(0, min(p.blocks_per_cta, all_blocks - first_block));

    if (threadIdx.x == 0) {
        for (int s = 0; s < p.stages; ++s) {
            ptx::mbarrier_init(full + 8 * s, 1);
            ptx::mbarrier_init(empty + 8 * s, kQuantizeWarps + (p.r > 0 ? 4 : 0));
        }
        for (int d = 0; d < kExchangeDepth; ++d) {
            ptx::mbarrier_init(max_bar + 8 * d, 1);
            ptx::mbarrier_init(t_bar + 8 * d, 1);
            ptx::mbarrier_init(summed_bar + 8 * d, kSumWarps);
        }
        ptx::mbarrier_init(lora_bar, 1);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::cluster_arrive();
    ptx::cluster_wait();

    uint32_t stage = 0, phase = 0;
    const auto advance = [&] {
        if (++stage == static_cast<uint32_t>(p.stages)) stage = 0, phase ^= 1;
    };

    if (warp >= kQuantizeWarps + 4) {  // ---- loads ----
        ptx::fewer_registers<kLoadRegs>();
        if (warp == kQuantizeWarps + 4 && lane == 0) {
            ptx::wait_for_previous();
            ptx::launch_dependents();
            if (p.r > 0) {
                ptx::mbarrier_arrive_expect(lora_bar, static_cast<uint32_t>(blocks * 2 * layout.lora_box));
                uint32_t dst = lora_sm;
                for (int half = 0; half < 2 * blocks; ++half, dst += static_cast<uint32_t>(layout.lora_box)) {
                    ptx::tma_load_2d(dst, &p.lora_down, first_block * kBlockK + 64 * half, 0, lora_bar);
                }
            }
            for (int tile = first_tile; tile < tiles; tile += tile_step, advance()) {
                ptx::mbarrier_wait(empty + 8 * stage, phase ^ 1);
                ptx::mbarrier_arrive_expect(full + 8 * stage, static_cast<uint32_t>(blocks * 2 * kBox));
                uint32_t dst = x_sm + stage * static_cast<uint32_t>(layout.stage);
                for (int half = 0; half < 2 * blocks; ++half, dst += kBox) {
                    ptx::tma_load_2d(dst, &p.x, first_block * kBlockK + 64 * half, tile * kTileTokens,
                                     full + 8 * stage);
                }
            }
        } else if (warp > kQuantizeWarps + 4 && p.r > 0) {  // ---- sums of t ----
            const int thread = static_cast<int>(threadIdx.x) - (kQuantizeWarps + 5) * 32;
            for (int e = thread; e < p.r * 2 * blocks; e += 32 * kSumWarps) {  // lines of this CTA's lora_down
                const int rank = e / (2 * blocks), column = first_block * kBlockK + 64 * (e - rank * 2 * blocks);
                if (column < p.k)
                    ptx::prefetch_l2(p.lora_down_rows + static_cast<size_t>(rank) * static_cast<size_t>(p.k) + column);
            }
            ptx::wait_for_previous();  // t may still be read by the kernel before
            const int share = layout.share, mine = max(0, min(share, kTileTokens - cta * share));  // tokens summed here
            const uint32_t t_sm = x_sm + static_cast<uint32_t>(layout.t);
            const uint32_t pairs = static_cast<uint32_t>(p.r) / 2,
                           part_bytes = static_cast<uint32_t>(share) * pairs * 8;
            int i = 0;
            for (int tile = first_tile; tile < tiles; tile += tile_step, ++i) {
                const uint32_t d = static_cast<uint32_t>(i) % kExchangeDepth;
                if (thread == 0)
                    ptx::mbarrier_arrive_expect(t_bar + 8 * d, static_cast<uint32_t>(ctas * mine * p.r * 4));
                ptx::mbarrier_wait(t_bar + 8 * d, (static_cast<uint32_t>(i) / kExchangeDepth) & 1);
                for (uint32_t e = static_cast<uint32_t>(thread); e < static_cast<uint32_t>(mine) * pairs;
                     e += 32 * kSumWarps) {
                    const uint32_t token = e / pairs, rank = 2 * (e - token * pairs);
                    const int row = tile * kTileTokens + cta * share + static_cast<int>(token);
                    uint32_t at = t_sm + d * static_cast<uint32_t>(layout.t_slot) + 8 * e;
                    float2 sum = {0.f, 0.f};
                    for (int c = 0; c < ctas; ++c, at += part_bytes) {
                        const float2 v = bit_cast<float2>(ptx::load_shared_8(at));
                        sum.x += v.x, sum.y += v.y;
                    }
                    if (row < p.m) {
                        *reinterpret_cast<uint32_t*>(p.t + static_cast<size_t>(row) * static_cast<size_t>(p.r) + rank) =
                            Act16<T>::to_pair(sum.x, sum.y);
                    }
                }
                __syncwarp();
                if (lane == 0) ptx::mbarrier_arrive(summed_bar + 8 * d);
            }
        }
    } else if (warp >= kQuantizeWarps) {  // ---- t ----
        ptx::fewer_registers<kPartsRegs>();
        if (p.r > 0) {
            const int w = warp - kQuantizeWarps, g = lane / 4, j = lane % 4;
            const int share = layout.share;
            const uint32_t t_sm = x_sm + static_cast<uint32_t>(layout.t), t_slot = static_cast<uint32_t>(layout.t_slot);
            const uint32_t scratch = x_sm + static_cast<uint32_t>(layout.scratch) + static_cast<uint32_t>(lane) * 16;
            // Where this thread's sums go: tokens 8h + g, ranks 8w + 2j, +1.
            uint32_t send_to[2], send_bar[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int token = 8 * h + g, owner = token / share;
                const int at = ((cta * share + token - owner * share) * p.r + 8 * w + 2 * j) * 4;
                send_to[h] = ptx::cluster_addr(t_sm + static_cast<uint32_t>(at), static_cast<uint32_t>(owner));
                send_bar[h] = ptx::cluster_addr(t_bar, static_cast<uint32_t>(owner));
            }
            // ldmatrix: lane l gives row l%8 of matrix l/8. x: 16 tokens x 16 columns; lora_down: 8 ranks x 32.
            const uint32_t x_row = static_cast<uint32_t>(lane) % 16 * 128,
                           down_row = static_cast<uint32_t>(lane) % 8 * 128;
            uint32_t x_chunk[2], down_chunk;  // of 8 columns in the row, swizzled
#pragma unroll
            for (int s = 0; s < 2; ++s) x_chunk[s] = ((4 * (w % 2) + 2 * s + lane / 16) ^ (lane % 8)) * 16;
            down_chunk = ((4 * (w % 2) + lane / 8) ^ (lane % 8)) * 16;
            ptx::mbarrier_wait(lora_bar, 0);
            int i = 0;
            for (int tile = first_tile; tile < tiles; tile += tile_step, ++i, advance()) {
                const uint32_t d = static_cast<uint32_t>(i) % kExchangeDepth;
                ptx::mbarrier_wait(full + 8 * stage, phase);
                float acc[4][4] = {};
                uint32_t x_at =
                    x_sm + stage * static_cast<uint32_t>(layout.stage) + static_cast<uint32_t>(w / 2) * kBox + x_row;
                uint32_t down_at = lora_sm + static_cast<uint32_t>(w / 2) * static_cast<uint32_t>(layout.lora_box) +
                                   down_row + down_chunk;
#pragma unroll 1
                for (int b = 0; b < blocks; ++b) {
                    uint32_t down[4][4];
#pragma unroll
                    for (int n = 0; n < 4; ++n) ptx::ldmatrix_x4(down[n], down_at + n * 1024);
#pragma unroll
                    for (int s = 0; s < 2; ++s) {
                        uint32_t xa[4];
                        ptx::ldmatrix_x4(xa, x_at + x_chunk[s]);
#pragma unroll
                        for (int n = 0; n < 4; ++n) ptx::mma_16bit(T(), acc[n], xa, down[n][2 * s], down[n][2 * s + 1]);
                    }
                    down_at += 2 * static_cast<uint32_t>(layout.lora_box);
                    x_at += 2 * kBox;
                }
                __syncwarp();
                if (lane == 0) ptx::mbarrier_arrive(empty + 8 * stage);  // the stage has been read
                // Warp w sums ranks 8w .. 8w+7 of the four warps and sends them to the tokens' owners.
                float own[4];
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const uint32_t to = scratch + static_cast<uint32_t>((3 * n + ((w - n - 1) & 3)) * 512);
                    if (n == w) {
#pragma unroll
                        for (int e = 0; e < 4; ++e) own[e] = acc[n][e];
                    } else {
                        ptx::store_shared_16(to, acc[n]);
                    }
                }
                ptx::named_barrier_sync(OnceBarrier::kParts, 128);
#pragma unroll
                for (int other = 0; other < 3; ++other) {
                    const uint4 v = ptx::load_shared_16(scratch + static_cast<uint32_t>(3 * w + other) * 512);
                    own[0] += __uint_as_float(v.x), own[1] += __uint_as_float(v.y);
                    own[2] += __uint_as_float(v.z), own[3] += __uint_as_float(v.w);
                }
                ptx::named_barrier_sync(OnceBarrier::kParts, 128);
                if (i > 1) {
                    ptx::mbarrier_wait(summed_bar + 8 * (static_cast<uint32_t>(i - 2) % kExchangeDepth),
                                       (static_cast<uint32_t>(i - 2) / kExchangeDepth) & 1);
                }
                if (8 * w < p.r) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        ptx::store_async_8(send_to[h] + d * t_slot, own[2 * h], own[2 * h + 1], send_bar[h] + 8 * d);
                    }
                }
            }
        }
    } else {  // ---- x_q, x_scale ----
        ptx::more_registers<kQuantizeRegs>();
        ptx::wait_for_previous();  // x_q may still be read by the kernel before
        const int row_group = warp % kRowGroups, deal = warp / kRowGroups;
        const int j = lane % 4, row = 8 * row_group + task_row(lane);
        const uint32_t max_sm = x_sm + static_cast<uint32_t>(layout.maxima),
                       warp_max_sm = x_sm + static_cast<uint32_t>(layout.warp_maxima);
        const uint32_t mul_sm = x_sm + static_cast<uint32_t>(layout.act_mul);
        for (int i = static_cast<int>(threadIdx.x); i < blocks * 16; i += kQuantizeWarps * 32) {
            const int column = first_block * kBlockK + 8 * i;
            ptx::store_shared_16(mul_sm + static_cast<uint32_t>(i) * 16,
                                 ptx::load_global_nc_16(p.act_mul + min(column, p.k - 8)));
        }
        ptx::named_barrier_sync(OnceBarrier::kActMul, kQuantizeWarps * 32);

        uint32_t last[kMaxTasks][16];  // x^ of the tile before
        int i = 0;
        for (int tile = first_tile;; tile += tile_step, ++i) {
            uint32_t xh[kMaxTasks][16];
            if (tile < tiles) {  // pass 1 of tile i
                ptx::mbarrier_wait(full + 8 * stage, phase);
                uint32_t top = 0;
#pragma unroll
                for (int q = 0; q < kMaxTasks; ++q) {
                    const int b = deal + q * kSplit;
                    if (b < blocks) {
                        smooth<T>(
                            xh[q],
                            x_sm + stage * static_cast<uint32_t>(layout.stage) + static_cast<uint32_t>(b) * 2 * kBox,
                            kBox, row, j, mul_sm + static_cast<uint32_t>(b) * 256);
                        top = running_max<T>(top, xh[q]);
                    }
                }
                __syncwarp();
                if (lane == 0) ptx::mbarrier_arrive(empty + 8 * stage);
                advance();
                top = max_lanes<4>(max_pattern(top));
                const uint32_t mine = warp_max_sm + static_cast<uint32_t>((i & 1) * kQuantizeWarps * 8) * 4;
                if (j == 0) ptx::store_shared_4(mine + static_cast<uint32_t>(deal * kTileTokens + row) * 4, top);
                ptx::named_barrier_sync(OnceBarrier::kRowGroup, 32 * kSplit, row_group);
                const uint32_t d = static_cast<uint32_t>(i) % kExchangeDepth;
                if (threadIdx.x == 0)
                    ptx::mbarrier_arrive_expect(max_bar + 8 * d, static_cast<uint32_t>(ctas * kTileTokens * 4));
                const int peer = deal * 4 + j;  // the warps and quads share the peers out
                if (peer < ctas || peer + 4 * kSplit < ctas) {
                    top = 0;
#pragma unroll
                    for (int w = 0; w < kSplit; ++w)
                        top = max(top, ptx::load_shared_4(mine + static_cast<uint32_t>(w * kTileTokens + row) * 4));
                    const uint32_t slot = max_sm + ((d * static_cast<uint32_t>(ctas) + cta) * kTileTokens + row) * 4;
                    for (int c = peer; c < ctas; c += 4 * kSplit) {
                        ptx::store_async_4(ptx::cluster_addr(slot, static_cast<uint32_t>(c)), top,
                                           ptx::cluster_addr(max_bar + 8 * d, static_cast<uint32_t>(c)));
                    }
                }
                __syncwarp();
            }
            if (i > 0) {  // pass 2 of tile i-1
                const uint32_t d = static_cast<uint32_t>(i - 1) % kExchangeDepth;
                ptx::mbarrier_wait(max_bar + 8 * d, (static_cast<uint32_t>(i - 1) / kExchangeDepth) & 1);
                uint32_t top = 0;
                for (int c = j; c < ctas; c += 4) {
                    top = max(top, ptx::load_shared_4(max_sm +
                                                      ((d * static_cast<uint32_t>(ctas) + c) * kTileTokens + row) * 4));
                }
                const RowScale scale = row_scale<T>(max_lanes<4>(top));
                const int out_row = (tile - tile_step) * kTileTokens + row;
                if (cta == 0 && deal == 0 && j == 0 && out_row < p.m) p.x_scale[out_row] = scale.stored;
                uint8_t* codes = p.x_q + (static_cast<size_t>(out_row) * static_cast<size_t>(all_blocks) +
                                          static_cast<size_t>(first_block)) *
                                             kBlockK;
#pragma unroll
                for (int q = 0; q < kMaxTasks; ++q) {
                    const int b = deal + q * kSplit;
                    if (b < blocks)
                        store_codes<T>(codes + static_cast<size_t>(b) * kBlockK, out_row < p.m, last[q], scale);
                }
                __syncwarp();
            }
            if (tile >= tiles) break;
#pragma unroll
            for (int e = 0; e < kMaxTasks * 16; ++e) last[e / 16][e % 16] = xh[e / 16][e % 16];
        }
    }
    __syncwarp();
    ptx::cluster_arrive();  // peers may still be sending to this CTA
    ptx::cluster_wait();
}

}  // namespace svdq::sm90
