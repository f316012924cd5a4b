// gemm_w4a8 (sm_90a): y^T = act( wscale2 * x_scale * ((z q) . x_q^T) + lora_up . t^T + bias )
//
// Persistent CTAs of kWgs = 2 or 3 consumer warpgroups and 1 producer warp; a CTA's tile is 64 kWgs weight
// rows x kBn tokens.
//
//                 tokens -> kBn = 64..256
//               +------------------------+   consumer warpgroup w: 64 rows x kBn tokens, wgmma m64nBNk32 s8
//   weight  64  | warpgroup 0            |     A = W, 4-bit in shared memory -> int8 in registers
//   rows        +------------------------+     B = x_q, 128-byte swizzled shared memory
//    |      64  | warpgroup 1            |
//    v          +------------------------+   ring of stages, each 128 of K:
//           64  | warpgroup 2            |     x_q kBn x 128 B | qweight rows x 64 B | z 2 x rows
//               +------------------------+
//
//   The warpgroups start apart and release stages on their own: while one converts and stores, the others
//   have the tensor cores, as far as the ring reaches.
//   Gated: the upper half of a tile's rows comes from the first half of N, the lower from the second, so that
//   fragment rows g and g+8 of a thread are a pair: 32w + 8*warp + g of either half.
//   After K come ceil(R/32) tail stages through the same ring: t as kBn x 32 ranks in the first half of the token slot,
//   lora_up as rows x 32 ranks in the weight slot; in the first stage x_scale, wscale2, bias, too, in the other half.
//   s32 accumulators become fp32 in place and 16-bit wgmma adds lora_up . t^T.
//
// Operands:
//   x_q      [M, Kp] i8      w4a8_layout.h order      TMA, 128B swizzle
//   x_scale  [M] f32         zeros beyond M           TMA
//   t        [M, R]          act dtype                TMA, 64B swizzle; zeros from R on
//   lora_up  [N, R]          act dtype                TMA, 64B swizzle; zeros from R on
//   qweight  [N, K/2] bytes  row-major                TMA, 64-byte rows; 16-byte reads have no bank conflicts
//   z        [K/64, N] i8    one per row and 64       cp.async of 8 bytes: N % 8 == 0 is too little for TMA
//   wscale2  [N] f32, bias [N] act dtype              cp.async of 8 bytes
//   y        [M, N_out]      act dtype                per warpgroup stmatrix.trans; stores of whole 128-byte rows
// Tried and dropped: z from global straight into registers a stage ahead (H200: a stage then took 1000 cycles
//   or more at any kBn, 12 to 15 % of the K = 12288 and 15360 shapes); y through TMA stores (no faster); y by each warp
//   alone, 32 bytes per token (5 to 15 % slower); clusters of 2 that share tokens by multicast (0 to 5 % slower).
// Numerics: exact s32 over K; then fp32; one rounding. No atomics; the order of every sum is fixed.
#pragma once

#include "../common/activate.cuh"
#include "../common/activation_fast.cuh"
#include "../common/numerics.cuh"
#include "../common/s4.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/copy.cuh"
#include "../ptx/ld_st.cuh"
#include "../ptx/registers.cuh"
#include "../ptx/tma.cuh"
#include "../ptx/wgmma.cuh"
#include "w4a8_layout.h"

namespace svdq::sm90 {

struct W4A8GemmArgs {
    CUtensorMap x_q, x_scale, qweight, t, lora_up;
    const uint8_t* z;      // [K/64, N]
    const float* wscale2;  // [N]
    const uint16_t* bias;  // [N] act dtype
    void* y;               // [M, N_out] act dtype
    int m, n, k, r;
    int function;  // svdq_activation of each sum: ActClass::kUnary
    int row_tiles, token_tiles;
};

// Which code a kernel is compiled with: no activation; any one of a sum, chosen at run time; of a pair, by the gate's
// function, since a branch there makes the tile of 192 tokens spill more.
enum class ActClass { kNone, kUnary, kGeluGate, kSiluGate };

template <ActClass kAct>
__device__ __forceinline__ float of_gate(float v) {
    return kAct == ActClass::kGeluGate ? Fast::gelu(v) : Fast::silu(v);
}

// kStart: one per warpgroup but the first, which the one before it releases; kSlab: one per warpgroup.
enum class GemmBarrier : uint32_t { kStart = 1, kSlab = 4 };
constexpr int kTailRanks = 32;
constexpr int kRasterRows = 16;  // tiles along N visited before the next token tile

// One lane releases a stage for its warp: each lane's reads have ended when the .sync.aligned wait behind them lets the
// warp go on. racecheck does not know that (tests/gpu/sanitize/racecheck_limit.cu); a build for it has every lane
// arrive.
#if SVDQ_RACECHECK
constexpr int kReleasesPerWarp = 32;
#else
constexpr int kReleasesPerWarp = 1;
#endif

// Sizes of a kernel with kWgs consumer warpgroups and kBn tokens per tile.
template <int kWgs, int kBn>
struct GemmTile {
    static constexpr int kRows = 64 * kWgs;
    static constexpr int kThreads = 128 * (kWgs + 1);
    static constexpr int kTokenSlot = kBn * kBlockK;
    static constexpr int kWeightSlot = kRows * kBlockK / 2;
    static constexpr int kZSlot = 2 * kRows;  // z of two groups of 64
    static constexpr int kStage = kTokenSlot + kWeightSlot + kZSlot;
    // Bytes from a tail stage's token slot.
    static constexpr int kScaleAt = kBn * kTailRanks * 2, kScale2At = kScaleAt + kBn * 4,
                         kBiasAt = kScale2At + kRows * 4;
    static_assert(kRows * kTailRanks * 2 == kWeightSlot && kBiasAt + kRows * 2 <= kTokenSlot,
                  "a tail stage is a stage");
    static constexpr int kSlabBytes = 4096;  // tokens x features that a warpgroup transposes at a time; it has two
    static constexpr int kFixed = 1024 + kWgs * 2 * kSlabBytes + 256;  // alignment, slabs, barriers
    static constexpr int kFit = (kSmemLimit - kFixed) / kStage;
    static constexpr int kStages = kFit < 8 ? kFit : 8;
    static constexpr int kSmem = kFixed + kStages * kStage;
    static constexpr int kStagger = kWgs == 2 ? 4 : 2;  // stages that a warpgroup starts behind the one before
    static constexpr int kProducerRegs = 56;            // the sum is what the CTA starts with: 3 * 168, 4 * 128
    static constexpr int kConsumerRegs = kWgs == 2 ? 224 : 152;
};

// s32 -> fp32 with one fp32 add in place of the slow conversion: sums start at kMagicBits, so that one below 2^22 in
// magnitude already is the float kMagic + sum. Larger ones send the warp the slow way; both ways round the exact sum
// once. (|sum| <= 127 * 126 * K leaves room in 32 bits for every K that quantize takes.)
template <int kCount>
__device__ __forceinline__ void to_float(float (&v)[kCount], const int32_t (&acc)[kCount]) {
    uint32_t outside = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i)
        outside |= static_cast<uint32_t>(acc[i]) ^ 0x4b000000u;  // 23 bits where the sum fits
    if (__any_sync(0xffffffffu, outside >> 23)) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] = static_cast<float>(acc[i] - static_cast<int32_t>(kMagicBits));
    } else {
#pragma unroll
        for (int i = 0; i < kCount; ++i) v[i] = __int_as_float(acc[i]) - kMagic;
    }
}

struct TilePlace {
    int row, token;  // first weight row (gated: first output feature) of this CTA, first token
};

// Walks `kRasterRows` of row tiles for every token tile, then the next rows: the weights of a group stay in L2.
__device__ __forceinline__ TilePlace tile_at(const W4A8GemmArgs& p, int index, int rows_per_tile, int bn) {
    const int per_group = kRasterRows * p.token_tiles;
    const int group = index / per_group;
    const int in_group = index - group * per_group;
    const int first = group * kRasterRows;
    const int rows = min(kRasterRows, p.row_tiles - first);
    const int token = in_group / rows;
    const int row = first + in_group - token * rows;
    return {row * rows_per_tile, token * bn};
}

template <int kWgs, int kBn, class T, ActClass kAct>
__global__ void __launch_bounds__(GemmTile<kWgs, kBn>::kThreads, 1)
    gemm_w4a8_kernel(const __grid_constant__ W4A8GemmArgs p) {
    using Sizes = GemmTile<kWgs, kBn>;
    constexpr int kStages = Sizes::kStages, kRows = Sizes::kRows;
    constexpr int kTokenSlot = Sizes::kTokenSlot, kWeightSlot = Sizes::kWeightSlot, kZSlot = Sizes::kZSlot;
    constexpr int kConsumerWarps = 4 * kWgs;
    constexpr bool kGated = kAct == ActClass::kGeluGate || kAct == ActClass::kSiluGate;
    constexpr int kOutRows = kGated ? kRows / 2 : kRows;  // features of y per tile
    constexpr int kAcc = kBn / 2;

    extern __shared__ uint8_t smem_raw[];
    const uint32_t smem = (ptx::smem_addr(smem_raw) + 1023u) & ~1023u;
    const uint32_t x_sm = smem;
    const uint32_t slab_sm = x_sm + kStages * kTokenSlot;
    const uint32_t w_sm = slab_sm + kWgs * 2 * Sizes::kSlabBytes;
    const uint32_t z_sm = w_sm + kStages * kWeightSlot;
    const uint32_t full = z_sm + kStages * kZSlot;
    const uint32_t empty = full + 8 * kStages;

    const int warp = static_cast<int>(threadIdx.x) / 32;
    const int lane = static_cast<int>(threadIdx.x) % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            ptx::mbarrier_init(full + 8 * s, 1 + 32);  // the TMA thread, and every producer lane for z
            ptx::mbarrier_init(empty + 8 * s, kConsumerWarps * kReleasesPerWarp);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::launch_dependents();

    const int tiles = p.row_tiles * p.token_tiles;
    const int k_blocks = (p.k + kBlockK - 1) / kBlockK;
    const int tails = p.r > kTailRanks ? (p.r + kTailRanks - 1) / kTailRanks : 1;
    uint32_t stage = 0, phase = 0;
    const auto advance = [&] {
        if (++stage == kStages) stage = 0, phase ^= 1;
    };

    if (warp >= kConsumerWarps) {  // ---- producer ----
        ptx::fewer_registers<Sizes::kProducerRegs>();
        if (warp == kConsumerWarps) {
            const bool leader = lane == 0;
            if (leader) {
                ptx::prefetch_tensor_map(&p.x_q);
                ptx::prefetch_tensor_map(&p.x_scale);
                ptx::prefetch_tensor_map(&p.qweight);
                ptx::prefetch_tensor_map(&p.t);
                ptx::prefetch_tensor_map(&p.lora_up);
            }
            ptx::wait_for_previous();
            const int z_groups = p.k / 64;
            for (int index = static_cast<int>(blockIdx.x); index < tiles; index += static_cast<int>(gridDim.x)) {
                const TilePlace tile = tile_at(p, index, kOutRows, kBn);
                const int second = (kGated ? p.n / 2 : kRows / 2) + tile.row;  // row of W of the slot's lower half
                // Row of W of the slot's `row`, clamped so that `count` can be read; clipped rows are not stored.
                const auto weight_row = [&](int row, int count) {
                    return min(row < kRows / 2 ? tile.row + row : second + row - kRows / 2, p.n - count);
                };
                for (int kb = 0; kb < k_blocks; ++kb, advance()) {
                    ptx::mbarrier_wait(empty + 8 * stage, phase ^ 1);
                    if (leader) {
                        ptx::mbarrier_arrive_expect(full + 8 * stage, kTokenSlot + kWeightSlot);
                        const uint32_t w_dst = w_sm + stage * kWeightSlot;
                        ptx::tma_load_2d(x_sm + stage * kTokenSlot, &p.x_q, kb * kBlockK, tile.token, full + 8 * stage);
                        ptx::tma_load_2d(w_dst, &p.qweight, kb * (kBlockK / 2), tile.row, full + 8 * stage);
                        ptx::tma_load_2d(w_dst + kWeightSlot / 2, &p.qweight, kb * (kBlockK / 2), second,
                                         full + 8 * stage);
                    }
                    for (int c = lane; c < kZSlot / 8; c += 32) {
                        const int group = min(2 * kb + 8 * c / kRows, z_groups - 1);
                        ptx::cp_async_8(
                            z_sm + stage * kZSlot + 8 * static_cast<uint32_t>(c),
                            p.z + static_cast<size_t>(group) * static_cast<size_t>(p.n) + weight_row(8 * c % kRows, 8));
                    }
                    ptx::cp_async_arrive(full + 8 * stage);
                }
                for (int tail = 0; tail < tails; ++tail, advance()) {
                    ptx::mbarrier_wait(empty + 8 * stage, phase ^ 1);
                    const uint32_t bar = full + 8 * stage, tokens = x_sm + stage * kTokenSlot;
                    if (leader) {
                        const uint32_t scale_bytes = tail == 0 ? kBn * 4 : 0,
                                       rank_bytes = (kBn + kRows) * kTailRanks * 2;
                        ptx::mbarrier_arrive_expect(bar, scale_bytes + (p.r > 0 ? rank_bytes : 0));
                        if (tail == 0) ptx::tma_load_2d(tokens + Sizes::kScaleAt, &p.x_scale, tile.token, 0, bar);
                        if (p.r > 0) {
                            const uint32_t up_dst = w_sm + stage * kWeightSlot;
                            ptx::tma_load_2d(tokens, &p.t, tail * kTailRanks, tile.token, bar);
                            ptx::tma_load_2d(up_dst, &p.lora_up, tail * kTailRanks, tile.row, bar);
                            ptx::tma_load_2d(up_dst + kWeightSlot / 2, &p.lora_up, tail * kTailRanks, second, bar);
                        }
                    }
                    if (tail == 0) {
                        for (int row = 2 * lane; row < kRows; row += 64) {
                            ptx::cp_async_8(tokens + Sizes::kScale2At + 4 * static_cast<uint32_t>(row),
                                            p.wscale2 + weight_row(row, 2));
                        }
                        for (int row = 4 * lane; row < kRows; row += 128) {
                            ptx::cp_async_8(tokens + Sizes::kBiasAt + 2 * static_cast<uint32_t>(row),
                                            p.bias + weight_row(row, 4));
                        }
                    }
                    ptx::cp_async_arrive(full + 8 * stage);
                }
            }
        }
    } else {  // ---- consumers ----
        ptx::more_registers<Sizes::kConsumerRegs>();
        const int wg = warp / 4, warp_in_wg = warp % 4;
        const int g = lane / 4, t = lane % 4;
        const int row0 = kGated ? wg * 32 + warp_in_wg * 8 + g : wg * 64 + warp_in_wg * 16 + g;  // rows in the slot
        const int row1 = kGated ? row0 + kRows / 2 : row0 + 8;
        const uint32_t w_rd = static_cast<uint32_t>(row0) * (kBlockK / 2) + static_cast<uint32_t>(t) * 16;
        constexpr uint32_t kRow1 = (kGated ? kRows / 2 : 8) * (kBlockK / 2);
        const uint32_t z_rd = z_sm + static_cast<uint32_t>(t / 2) * kRows + static_cast<uint32_t>(row0);
        constexpr uint32_t kZRow1 = kGated ? kRows / 2 : 8;
        // ldmatrix of lora_up: lane l gives row l%8 of matrix l/8; matrices 1 and 3 are the rows of row1.
        const uint32_t up_row = static_cast<uint32_t>((lane / 8 % 2 ? row1 : row0) - g + lane % 8) * (kTailRanks * 2);
        const auto release = [&](uint32_t s) {
            if (lane < kReleasesPerWarp) ptx::mbarrier_arrive(empty + 8 * s);
        };

        int index = static_cast<int>(blockIdx.x);
        constexpr int kChunks = kGated ? 4 : 8;  // of 8 features that a warpgroup has
        constexpr int kSlabTokens = kGated && kBn % 64 == 0 ? 64 : 32;
        static_assert(kBn % kSlabTokens == 0 && kSlabTokens * kChunks * 16 <= Sizes::kSlabBytes,
                      "slabs cover the tile");
        const uint32_t slabs = slab_sm + static_cast<uint32_t>(wg) * 2 * Sizes::kSlabBytes;
        uint32_t slab_parity = 0;
        // Eight tokens of a chunk, or the chunks of a token, lie in different banks.
        const auto slab_at = [](int token, int chunk) {
            const int swizzle = kGated ? token / 2 % 4 : token % 8;
            return static_cast<uint32_t>(token * kChunks + (chunk ^ swizzle)) * 16;
        };
        // Start apart, so that the epilogues fall apart too; the ring keeps the distance.
        int stagger_at = wg < kWgs - 1 && index < tiles ? min(Sizes::kStagger, k_blocks) - 1 : -1;
        if (wg > 0 && index < tiles) ptx::named_barrier_sync(GemmBarrier::kStart, 256, wg - 1);
        for (; index < tiles; index += static_cast<int>(gridDim.x)) {
            const TilePlace tile = tile_at(p, index, kOutRows, kBn);
            int32_t acc[kAcc];
#pragma unroll
            for (int i = 0; i < kAcc; ++i) acc[i] = static_cast<int32_t>(kMagicBits);
            uint32_t a[4][4];
            for (int kb = 0; kb < k_blocks; ++kb) {
                ptx::mbarrier_wait(full + 8 * stage, phase);
                const uint32_t w_at = w_sm + stage * kWeightSlot + w_rd;
                const uint32_t z0 = ptx::load_shared_1(z_rd + stage * kZSlot),
                               z1 = ptx::load_shared_1(z_rd + stage * kZSlot + kZRow1);
                const uint4 w0v = ptx::load_shared_16(w_at), w1v = ptx::load_shared_16(w_at + kRow1);
                const uint32_t c0 = zq_offset<true>(z0), c1 = zq_offset<true>(z1);
                const uint32_t w0[4] = {w0v.x, w0v.y, w0v.z, w0v.w}, w1[4] = {w1v.x, w1v.y, w1v.z, w1v.w};
                const uint64_t b = ptx::wgmma_rows_128(x_sm + stage * kTokenSlot);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    uint32_t (&frag)[4] = a[j];  // free: at most the previous two wgmma are in flight
                    frag[0] = zq_bytes(w0[j], z0, c0);
                    frag[1] = zq_bytes(w1[j], z1, c1);
                    frag[2] = zq_bytes(w0[j] >> 4, z0, c0);
                    frag[3] = zq_bytes(w1[j] >> 4, z1, c1);
                    ptx::wgmma_fence();
                    ptx::Wgmma<kBn>::s8(acc, frag, b + 2 * j);
                    ptx::wgmma_commit();
                    ptx::wgmma_wait<2>();
                    if (j == 1 && kb > 0) release(stage == 0 ? kStages - 1 : stage - 1);
                }
                if (kb == stagger_at) {
                    ptx::named_barrier_arrive(GemmBarrier::kStart, 256, wg);
                    stagger_at = -1;
                }
                advance();
            }

            ptx::wgmma_wait<0>();
            release(stage == 0 ? kStages - 1 : stage - 1);

            // s32 -> fp32, scales, bias
            ptx::mbarrier_wait(full + 8 * stage, phase);
            const uint32_t scales = x_sm + stage * kTokenSlot + Sizes::kScaleAt;
            const uint32_t scale2 = x_sm + stage * kTokenSlot + Sizes::kScale2At;
            const uint32_t bias = x_sm + stage * kTokenSlot + Sizes::kBiasAt;
            const float s0 = __uint_as_float(ptx::load_shared_4(scale2 + 4 * row0)),
                        s1 = __uint_as_float(ptx::load_shared_4(scale2 + 4 * row1));
            const float b0 = Act16<T>::to_float(ptx::load_shared_2(bias + 2 * row0)),
                        b1 = Act16<T>::to_float(ptx::load_shared_2(bias + 2 * row1));
            float v[kAcc];
            to_float(v, acc);
#pragma unroll
            for (int j = 0; j < kBn / 8; ++j) {
                const float2 xs = bit_cast<float2>(ptx::load_shared_8(scales + 32 * j + 8 * t));
                v[4 * j + 0] = fmaf(v[4 * j + 0], xs.x * s0, b0);
                v[4 * j + 1] = fmaf(v[4 * j + 1], xs.y * s0, b0);
                v[4 * j + 2] = fmaf(v[4 * j + 2], xs.x * s1, b1);
                v[4 * j + 3] = fmaf(v[4 * j + 3], xs.y * s1, b1);
            }
            for (int tail = 0; tail < tails; ++tail) {
                if (tail > 0) ptx::mbarrier_wait(full + 8 * stage, phase);
                if (p.r > 0) {
                    const uint64_t b = ptx::wgmma_rows_64(x_sm + stage * kTokenSlot);
                    uint32_t up[2][4];
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        ptx::ldmatrix_x4(up[i], w_sm + stage * kWeightSlot + up_row +
                                                    ((2 * i + lane / 16) ^ (up_row / 128 % 4)) * 16);
                    }
                    ptx::wgmma_fence();
                    ptx::wgmma_16bit<T>(v, up[0], b);
                    ptx::wgmma_16bit<T>(v, up[1], b + 2);
                    ptx::wgmma_commit();
                    ptx::wgmma_wait<0>();
                }
                __syncwarp();  // without a rank nothing else has kept the lanes' reads together
                release(stage);
                advance();
            }

            // activation, rounding, and a transposition within the warpgroup: slabs of tokens x its features, two in
            // turn, so that one barrier per slab is enough. Every store instruction writes whole 128-byte rows
            // (gated: 64).
            const int out_n = kGated ? p.n / 2 : p.n;
            const int first_feature = tile.row + wg * (8 * kChunks) + 8 * (lane % kChunks);
            T* y = static_cast<T*>(p.y) + static_cast<size_t>(tile.token) * static_cast<size_t>(out_n) + first_feature;
            const int tokens_left = first_feature < out_n ? p.m - tile.token : 0;
#pragma unroll
            for (int first = 0; first < kBn; first += kSlabTokens) {
                const uint32_t slab = slabs + (slab_parity ? Sizes::kSlabBytes : 0);
                slab_parity ^= 1;
                if constexpr (kGated) {
#pragma unroll
                    for (int q = 0; q < kSlabTokens / 32; ++q) {
                        uint32_t out[4];
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const float* e = v + first / 2 + 16 * q + 4 * i;
                            out[i] = pack<T>(e[0] * of_gate<kAct>(e[2]), e[1] * of_gate<kAct>(e[3]));
                        }
                        ptx::stmatrix_x4_trans(slab + slab_at(32 * q + lane, warp_in_wg), out[0], out[1], out[2],
                                               out[3]);
                    }
                } else {
                    const int mat = lane / 8;  // token half, feature half
#pragma unroll
                    for (int q = 0; q < kSlabTokens / 16; ++q) {
                        float* e = v + first / 2 + 8 * q;
                        if constexpr (kAct == ActClass::kUnary) activate<Fast, 8>(e, p.function);
                        ptx::stmatrix_x4_trans(
                            slab + slab_at(16 * q + 8 * (mat / 2) + lane % 8, 2 * warp_in_wg + mat % 2),
                            pack<T>(e[0], e[1]), pack<T>(e[2], e[3]), pack<T>(e[4], e[5]), pack<T>(e[6], e[7]));
                    }
                }
                ptx::named_barrier_sync(GemmBarrier::kSlab, 128, wg);
                constexpr int kLines = kSlabTokens * kChunks / 128;  // 16 bytes each, that a lane stores
                const auto line_token = [&](int q) { return (4 * q + warp_in_wg) * (32 / kChunks) + lane / kChunks; };
                uint4 line[kLines];
#pragma unroll
                for (int q = 0; q < kLines; ++q)
                    line[q] = ptx::load_shared_16(slab + slab_at(line_token(q), lane % kChunks));
#pragma unroll
                for (int q = 0; q < kLines; ++q) {
                    const int token = first + line_token(q);
                    if (token < tokens_left)
                        *reinterpret_cast<uint4*>(y + static_cast<size_t>(token) * static_cast<size_t>(out_n)) =
                            line[q];
                }
            }
        }
    }
}

}  // namespace svdq::sm90
