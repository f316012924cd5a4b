// attention (sm_90a): y = softmax(scale q.k^T + bias).v, exact, by blocks of keys
//
// Persistent CTAs of kWgs consumer warpgroups and 1 producer warp. A tile is 64 kWgs queries of one head; keys come in
// blocks of kKeys, the last block first, as it alone may be cut off.
//
//   producer   q  64 rows per warpgroup, loaded when that one is done with its last
//              k  ring of kStages blocks    v  ring of kStages blocks, one block behind k
//   consumer   s = q.k^T of a block (wgmma, both in shared memory), while o += p.v of the block before runs behind it
//              p = exp2(s - max), 16-bit, in the registers that are wgmma's operand A; v is read N-major, as it lies
//
//   The warpgroups take turns to issue products, so that one's softmax runs under the others' products. o is scaled
//   again only where a row's maximum has grown by more than a factor of 2^kSlack in p. Until then the largest p is not
//   1, which 16 bits hold exactly, so a large kSlack costs accuracy where one key dominates: 8 costs 1.9 dB, 2 0.5 dB.
//
// Operands, 16 bit: q [B, Lq, H, D], k and v [B, Lk, Hkv, D], by TMA with any distance between tokens: boxes of 64
// columns with 128-byte swizzle; D = 72 has a second box of 16 columns with 32-byte swizzle, the last 8 zeros.
// y [B, Lq, H, D], through shared memory; in two parts where queries are of two streams.
// Numerics: s, softmax and o in fp32; p rounded to 16 bit; one rounding of y. The order of every sum is fixed.
#pragma once

#include "../common/numerics.cuh"
#include "../common/quad.cuh"
#include "../common/types.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/ld_st.cuh"
#include "../ptx/math.cuh"
#include "../ptx/registers.cuh"
#include "../ptx/tma.cuh"
#include "../ptx/wgmma.cuh"
#include "attention_tile.h"

namespace svdq::sm90 {

enum class AttentionBarrier : uint32_t { kTurn = 1, kRows = 4 };  // one per warpgroup each

// A block of a ring.
template <int kStages>
struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == kStages) stage = 0, phase ^= 1;
    }
};

struct HeadPlace {
    int query, head, batch;  // first query of the tile
};

__device__ __forceinline__ HeadPlace place_of(const AttentionArgs& p, int tile, int rows) {
    const int head = tile / p.query_tiles;
    return {(tile - head * p.query_tiles) * rows, head % p.heads, head / p.heads};
}

template <class T, int kN, bool kAdd>
__device__ __forceinline__ void multiply_ss(float (&d)[kN / 2], uint64_t a, uint64_t b) {
    if constexpr (std::is_same_v<T, __half>) {
        ptx::WgmmaSs<kN, kAdd>::f16(d, a, b);
    } else {
        ptx::WgmmaSs<kN, kAdd>::bf16(d, a, b);
    }
}

template <class T, int kN>
__device__ __forceinline__ void multiply_t(float (&d)[kN / 2], const uint32_t* a, uint64_t b) {
    if constexpr (std::is_same_v<T, __half>) {
        ptx::WgmmaT<kN>::f16(d, a, b);
    } else {
        ptx::WgmmaT<kN>::bf16(d, a, b);
    }
}

// Maximum and sum of the two rows of a thread, over the keys so far. The sum is this thread's part.
struct RowState {
    float max[2], sum[2];
};

// s -> exp2(scale_log2 (s - max)), in place. kFirst: there was no block before. kFar: s may be so far below 0
// that a product's rounding is more than 1: then the difference, which is exact where it counts, comes first. Returns
// whether o must be scaled, the same in all lanes of a warp, by `alpha`.
template <bool kFirst, bool kFar, int kCount>
__device__ __forceinline__ bool soften(float (&s)[kCount], RowState& rows, float scale_log2, float (&alpha)[2]) {
    constexpr float kSlack = 2.f;
    float top[2] = {fmaxf(s[0], s[1]), fmaxf(s[2], s[3])};
#pragma unroll
    for (int i = 4; i < kCount; i += 4) {
        top[0] = fmaxf(top[0], fmaxf(s[i], s[i + 1]));
        top[1] = fmaxf(top[1], fmaxf(s[i + 2], s[i + 3]));
    }
    bool grows[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        top[r] = max_of_quad(top[r]);
        // The first finite maximum always is: what was summed before it, nothing, is scaled by 0.
        grows[r] = !kFirst && (top[r] - rows.max[r]) * scale_log2 > kSlack;
        if (kFirst) rows.max[r] = top[r];
    }
    const bool scale_o = __any_sync(0xffffffffu, grows[0] || grows[1]);
    if (scale_o) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {  // each by its own need: no row's bits depend on its neighbours
            alpha[r] = grows[r] ? ptx::exp2_approx((rows.max[r] - top[r]) * scale_log2) : 1.f;
            rows.sum[r] *= alpha[r];
            if (grows[r]) rows.max[r] = top[r];
        }
    }
    float max[2], offset[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        max[r] = rows.max[r] == -INFINITY ? 0.f : rows.max[r];
        offset[r] = rows.max[r] == -INFINITY ? 0.f : -rows.max[r] * scale_log2;
    }
    float sum[4] = {};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
        const int r = i / 2 % 2;
        s[i] = ptx::exp2_approx(kFar ? (s[i] - max[r]) * scale_log2 : fmaf(s[i], scale_log2, offset[r]));
        sum[i % 4] += s[i];
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) rows.sum[r] = (kFirst ? 0.f : rows.sum[r]) + (sum[2 * r] + sum[2 * r + 1]);
    return scale_o;
}

template <int kCount>
__device__ __forceinline__ void scale_rows(float (&o)[kCount], const float (&by)[2]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) o[i] *= by[i / 2 % 2];
}

template <class Tile, class T, bool kBias>
__global__ void __launch_bounds__(Tile::kThreads, 1) attention_kernel(const __grid_constant__ AttentionArgs p) {
    constexpr int kD = Tile::kD, kQueryStages = Tile::kQueryStages;
    constexpr int kWgs = Tile::kWgs, kKeys = Tile::kKeys, kStages = Tile::kStages, kPanels = Tile::kPanels;
    constexpr bool kEnd = Tile::kEnd;
    SVDQ_DYNAMIC_SHARED(raw);
    const uint32_t q_sm = (ptx::smem_addr(raw) + 1023) & ~1023u;
    const uint32_t k_sm = q_sm + kQueryStages * kWgs * Tile::kQuerySlot, v_sm = k_sm + kStages * Tile::kKeySlot;
    const uint32_t q_full = v_sm + kStages * Tile::kKeySlot, q_empty = q_full + 8 * kQueryStages * kWgs;
    const uint32_t k_full = q_empty + 8 * kQueryStages * kWgs, k_empty = k_full + 8 * kStages;
    const uint32_t v_full = k_empty + 8 * kStages, v_empty = v_full + 8 * kStages;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;

    if (threadIdx.x == 0) {
        for (int i = 0; i < kQueryStages * kWgs; ++i) {
            ptx::mbarrier_init(q_full + 8 * i, 1);
            ptx::mbarrier_init(q_empty + 8 * i, 4);
        }
        for (int i = 0; i < kStages; ++i) {
            ptx::mbarrier_init(k_full + 8 * i, 1);
            ptx::mbarrier_init(v_full + 8 * i, 1);
            ptx::mbarrier_init(k_empty + 8 * i, 4 * kWgs);
            ptx::mbarrier_init(v_empty + 8 * i, 4 * kWgs);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::launch_dependents();

    const int blocks = (p.keys + kKeys - 1) / kKeys;
    const int tiles = p.batch * p.heads * p.query_tiles;

    if (warp >= 4 * kWgs) {  // ---- producer ----
        ptx::fewer_registers<Tile::kProducerRegs>();
        if (threadIdx.x == 128 * kWgs) {
            ptx::wait_for_previous();
            Ring<kStages> k_at, v_at;
            Ring<kQueryStages> q_at;
            const auto load = [&](uint32_t slot, uint32_t rows, const CUtensorMap& map, const CUtensorMap& end,
                                  int head, int token, int batch, uint32_t bar) {
                ptx::mbarrier_arrive_expect(bar, rows * Tile::kRowBytes);
#pragma unroll
                for (int i = 0; i < kPanels; ++i)
                    ptx::tma_load_4d(slot + i * rows * 128, &map, 64 * i, head, token, batch, bar);
                if (kEnd) ptx::tma_load_4d(slot + kPanels * rows * 128, &end, 64 * kPanels, head, token, batch, bar);
            };
            for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
                const HeadPlace at = place_of(p, tile, 64 * kWgs);
                const int kv_head = at.head / p.heads_per_kv;
                const auto load_k = [&](int block) {
                    ptx::mbarrier_wait(k_empty + 8 * k_at.stage, k_at.phase ^ 1);
                    load(k_sm + k_at.stage * Tile::kKeySlot, kKeys, p.k, p.k_end, kv_head, block * kKeys, at.batch,
                         k_full + 8 * k_at.stage);
                    k_at.advance();
                };
                const auto load_v = [&](int block) {
                    ptx::mbarrier_wait(v_empty + 8 * v_at.stage, v_at.phase ^ 1);
                    load(v_sm + v_at.stage * Tile::kKeySlot, kKeys, p.v, p.v_end, kv_head, block * kKeys, at.batch,
                         v_full + 8 * v_at.stage);
                    v_at.advance();
                };
                load_k(blocks - 1);
#pragma unroll
                for (int wg = 0; wg < kWgs; ++wg) {
                    const uint32_t slot = q_at.stage * kWgs + wg;
                    ptx::mbarrier_wait(q_empty + 8 * slot, q_at.phase ^ 1);
                    load(q_sm + slot * Tile::kQuerySlot, 64, p.q, p.q_end, at.head, at.query + 64 * wg, at.batch,
                         q_full + 8 * slot);
                }
                q_at.advance();
                for (int block = blocks - 2; block >= 0; --block) {
                    load_k(block);
                    load_v(block + 1);
                }
                load_v(0);
            }
        }
    } else {  // ---- consumers ----
        ptx::more_registers<Tile::kConsumerRegs>();
        const int wg = warp / 4, t = lane % 4;
        const auto release = [&](uint32_t bar) {
            __syncwarp();
            if (lane == 0) ptx::mbarrier_arrive(bar);
        };
        Ring<kStages> k_at, v_at;
        Ring<kQueryStages> q_ring;
        uint32_t q_at = q_sm + wg * Tile::kQuerySlot;  // of this tile
        float s[kKeys / 2], o[32 * kPanels], o_end[4];
        uint32_t weights[kKeys / 4];

        const auto start_s = [&] {  // q.k^T of the next block of keys
            ptx::mbarrier_wait(k_full + 8 * k_at.stage, k_at.phase);
            const uint32_t slot = k_sm + k_at.stage * Tile::kKeySlot;
            const uint64_t q = ptx::wgmma_rows_128(q_at), k = ptx::wgmma_rows_128(slot);
            ptx::wgmma_fence();
            multiply_ss<T, kKeys, false>(s, q, k);
#pragma unroll
            for (int i = 1; i < 4 * kPanels; ++i)
                multiply_ss<T, kKeys, true>(s, q + i / 4 * (64 * 128 / 16) + 2 * (i % 4),
                                            k + i / 4 * (kKeys * 128 / 16) + 2 * (i % 4));
            if constexpr (kEnd)
                multiply_ss<T, kKeys, true>(s, ptx::wgmma_rows_32(q_at + kPanels * 64 * 128),
                                            ptx::wgmma_rows_32(slot + kPanels * kKeys * 128));
            ptx::wgmma_commit();
        };
        const auto start_o = [&] {  // o += weights.v of the next block
            ptx::mbarrier_wait(v_full + 8 * v_at.stage, v_at.phase);
            const uint32_t slot = v_sm + v_at.stage * Tile::kKeySlot;
            const uint64_t v = ptx::wgmma_panels_128(slot, kKeys * 128);
            const uint64_t v_last = ptx::wgmma_panel_32(slot + kPanels * kKeys * 128);
            ptx::wgmma_fence();
#pragma unroll
            for (int i = 0; i < kKeys / 16; ++i) {
                multiply_t<T, 64 * kPanels>(o, weights + 4 * i, v + 128 * i);
                if constexpr (kEnd) multiply_t<T, 8>(o_end, weights + 4 * i, v_last + 32 * i);
            }
            ptx::wgmma_commit();
        };
        const auto end_s = [&] {
            release(k_empty + 8 * k_at.stage);
            k_at.advance();
        };
        const auto end_o = [&] {
            release(v_empty + 8 * v_at.stage);
            v_at.advance();
        };
        const auto add_bias = [&](const HeadPlace& at, int block) {
            if constexpr (kBias) {
                const T* bias = static_cast<const T*>(p.bias) + static_cast<size_t>(at.batch) * p.keys;
#pragma unroll
                for (int i = 0; i < kKeys / 8; ++i) {
#pragma unroll
                    for (int c = 0; c < 2; ++c) {
                        const int key = block * kKeys + 8 * i + 2 * t + c;
                        float b = key < p.keys ? static_cast<float>(bias[key]) : 0.f;
                        // A finite one stays finite: a row whose keys all have the lowest number is the mean of v.
                        if (b != -INFINITY) b = fmaxf(b * p.bias_scale, -0x1p126f);
                        s[4 * i + c] += b;
                        s[4 * i + 2 + c] += b;
                    }
                }
            }
        };
        const auto take_weights = [&] {
#pragma unroll
            for (int i = 0; i < kKeys / 4; ++i) weights[i] = Act16<T>::to_pair(s[2 * i], s[2 * i + 1]);
        };

        if (wg == kWgs - 1 && kWgs > 1)  // the first turn is the first warpgroup's
            ptx::named_barrier_arrive(AttentionBarrier::kTurn, 256, 0);
        for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
            const HeadPlace at = place_of(p, tile, 64 * kWgs);
            RowState rows;
            float alpha[2] = {1.f, 1.f};
            bool scale_o = false;
#pragma unroll
            for (int i = 0; i < 32 * kPanels; ++i) o[i] = 0.f;
#pragma unroll
            for (int i = 0; i < 4; ++i) o_end[i] = 0.f;

            const uint32_t q_slot = q_ring.stage * kWgs + wg;
            q_at = q_sm + q_slot * Tile::kQuerySlot;
            ptx::mbarrier_wait(q_full + 8 * q_slot, q_ring.phase);
            q_ring.advance();
            start_s();
            ptx::wgmma_wait<0>();
            end_s();
            add_bias(at, blocks - 1);
            const int left = p.keys - (blocks - 1) * kKeys;  // keys of the last block
            if (left < kKeys) {
#pragma unroll
                for (int i = 0; i < kKeys / 2; ++i)
                    if (i / 4 * 8 + 2 * t + i % 2 >= left) s[i] = -INFINITY;
            }
            soften<true, kBias>(s, rows, p.scale_log2, alpha);
            take_weights();

            for (int block = blocks - 2; block >= 0; --block) {
                if (kWgs > 1) ptx::named_barrier_sync(AttentionBarrier::kTurn, 256, wg);
                start_s();
                if (scale_o) {
                    scale_rows(o, alpha);
                    if (kEnd) scale_rows(o_end, alpha);
                }
                start_o();
                if (kWgs > 1) ptx::named_barrier_arrive(AttentionBarrier::kTurn, 256, wg == kWgs - 1 ? 0 : wg + 1);
                ptx::wgmma_wait<1>();
                end_s();
                add_bias(at, block);
                scale_o = soften<false, kBias>(s, rows, p.scale_log2, alpha);
                ptx::wgmma_wait<0>();
                end_o();
                take_weights();
            }
            if (scale_o) {
                scale_rows(o, alpha);
                if (kEnd) scale_rows(o_end, alpha);
            }
            start_o();
            const float by[2] = {1.f / sum_of_quad(rows.sum[0]), 1.f / sum_of_quad(rows.sum[1])};
            ptx::wgmma_wait<0>();
            end_o();
            scale_rows(o, by);
            if (kEnd) scale_rows(o_end, by);

            // y: through this warp's rows of q, which nobody reads any more, to stores of whole lines.
            constexpr int kChunks = kD / 8;  // of 16 bytes in a row
            const int row0 = warp % 4 * 16;
            uint32_t lane_here = static_cast<uint32_t>(lane);  // or addresses would be kept, spilled, over all tiles
            ptx::keep(lane_here);
            const int at_lane = static_cast<int>(lane_here);
            const auto chunk_at = [&](int row, int chunk) {
                return chunk < 8 * kPanels
                           ? q_at + chunk / 8 * (64 * 128) + (row0 + row) * 128 + ((chunk ^ row) % 8) * 16
                           : q_at + kPanels * (64 * 128) + (row0 + row) * 32;
            };
            ptx::named_barrier_sync(AttentionBarrier::kRows, 128, wg);
#pragma unroll
            for (int i = 0; i < 4 * kPanels; ++i)
                ptx::stmatrix_x4(chunk_at(at_lane % 16, 2 * i + at_lane / 16), pack<T>(o[8 * i], o[8 * i + 1]),
                                 pack<T>(o[8 * i + 2], o[8 * i + 3]), pack<T>(o[8 * i + 4], o[8 * i + 5]),
                                 pack<T>(o[8 * i + 6], o[8 * i + 7]));
            if (kEnd) {
                ptx::store_shared_4(chunk_at(at_lane / 4, 8 * kPanels) + at_lane % 4 * 4, pack<T>(o_end[0], o_end[1]));
                ptx::store_shared_4(chunk_at(at_lane / 4 + 8, 8 * kPanels) + at_lane % 4 * 4,
                                    pack<T>(o_end[2], o_end[3]));
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < (16 * kChunks + 31) / 32; ++i) {
                const int index = 32 * i + at_lane, row = index / kChunks, chunk = index % kChunks;
                const int query = at.query + 64 * wg + row0 + row;
                if (row < 16 && query < p.queries) {
                    const int part = query < p.split ? 0 : 1;
                    const int in_part = part ? query - p.split : query;
                    const int length = part ? p.queries - p.split : p.split;
                    const size_t head = (static_cast<size_t>(at.batch) * length + in_part) * p.heads + at.head;
                    *reinterpret_cast<uint4*>(static_cast<T*>(p.y[part]) + head * kD + 8 * chunk) =
                        ptx::load_shared_16(chunk_at(row, chunk));
                }
            }
            ptx::fence_async_shared();
            release(q_empty + 8 * q_slot);
        }
    }
}

}  // namespace svdq::sm90
