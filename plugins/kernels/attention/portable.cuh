// attention (any sm_80+): y = softmax(scale q.k^T + bias).v, exact, by blocks of keys
//
// Grid: a CTA per 128 queries of a head. Its 4 warps have 32 queries each and all keys, in blocks of kKeys. Queries of a
// head are neighbours in the grid: they share k and v in the L2.
//
//            keys ->                         one ring of kStages slots, filled by cp.async:
//          +-------+-------+-----            k0, v0, k1, v1, ...
//   q 128  | w0    |       |                 step of k   s = q.k^T, 32 x kKeys a warp; softmax: p = exp2(s - max)
//          | w1    |       |                 step of v   o += p.v; p is, 16 bit, in the registers of operand A as it
//          | w2    |       |                             lies in those of s
//          | w3    |       |
//
//   o is scaled again only where a row's maximum has grown by more than a factor of 2^kSlack in p; a large kSlack costs
//   accuracy where one key dominates, as 16 bits hold 1 exactly. Each row by itself: its bits depend on no other.
//
// Operands, 16 bit: q [B, Lq, H, D], k and v [B, Lk, Hkv, D], any distance between tokens; y [B, Lq, H, D], in two parts
// where queries are of two streams. A head of D values runs in the smallest kernel with kD >= D, the rest being zeros.
// Shared memory: q, then the ring. A row of a head is kD / 8 chunks of 16 bytes: swizzled (chunk ^ row % 8) if that is a
// multiple of 8, else an odd number of chunks apart; either way ldmatrix has no bank conflicts, and chunks further on in a
// row are an immediate offset or one xor away. D = 72 is not padded: 4 MMAs m16n8k16 and one m16n8k8.
//
//            kKeys  stages  q in registers  shared memory
//   D  32     64      3          yes          25,600
//   D  64     64      3          yes          40,960
//   D  72     64      3          yes          46,080      two CTAs a multiprocessor have 49 KiB each
//   D 128     32      2          no           49,152
//
// Dropped: one m16 tile a warp (registers for three CTAs): as many fragments of k and v for half the products, 1 ldmatrix
// per 2 MMAs, which is all that shared memory gives where an MMA takes 8 cycles (sm_80). 64 keys at D = 128: two CTAs do
// not fit. IEEE division of y and addresses of y kept over the loop: spills on sm_120.
//
// Numerics: s, softmax and o in fp32; p rounded to 16 bit; one rounding of y. The order of every sum is fixed.
#pragma once

#include "../common/quad.cuh"
#include "../common/types.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/copy.cuh"
#include "../ptx/ld_st.cuh"
#include "../ptx/math.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/registers.cuh"
#include "portable_kernels.h"

namespace svdq::portable {

// Heads of kHeadSize, keys in blocks of kBlock through kRing slots.
template <int kHeadSize, int kBlock, int kRing>
struct HeadTile {
    static constexpr int kD = kHeadSize, kKeys = kBlock, kStages = kRing;
    static constexpr int kWarps = 4, kThreads = 32 * kWarps;
    static constexpr int kMt = 2;           // m16 tiles of a warp
    static constexpr int kRows = 16 * kMt;  // queries of a warp
    static constexpr int kQueries = kRows * kWarps;
    static constexpr int kChunks = kD / 8;       // of 16 bytes in a row; n8 tiles of o
    static constexpr int kSteps = kD / 16;       // k16 steps of q.k^T
    static constexpr bool kTail = kD % 16 != 0;  // and one of k8
    static constexpr bool kSwizzled = kChunks % 8 == 0;
    static constexpr int kRowBytes = 16 * (kSwizzled ? kChunks : kChunks | 1);
    static constexpr bool kKeepsQ = kD <= 72;  // all of q in registers
    static constexpr int kQueryBytes = kQueries * kRowBytes, kSlot = kKeys * kRowBytes;
    static constexpr int kSharedBytes = kQueryBytes + kStages * kSlot;
    static_assert(kKeys % 32 == 0 && kStages >= 2);
    static_assert(2 * (kSharedBytes + 1024) <= 100 * 1024, "two CTAs in the 100 KiB of sm_86, sm_89 and sm_120");

    // Of chunk `chunk` of row `row`, behind the first byte of an aligned tile.
    static __device__ __forceinline__ uint32_t offset(int row, int chunk) {
        return row * kRowBytes + (kSwizzled ? (chunk ^ row % 8) : chunk) * 16;
    }
    // The address `chunks` further on in the row of address `at`, where that adds to its chunk without a carry.
    static __device__ __forceinline__ uint32_t further(uint32_t at, int chunks) {
        return kSwizzled ? (at ^ (chunks % 8 * 16)) + chunks / 8 * 128 : at + chunks * 16;
    }
};

struct HeadPlace {
    int query, head, batch;  // first query of the tile

    __device__ __forceinline__ HeadPlace(const AttentionArgs& p, int queries) {
        uint32_t tile = blockIdx.x;
        ptx::keep(tile);  // made twice rather than in registers of the loop over keys
        const int of_head = static_cast<int>(tile) / p.query_tiles;
        query = (static_cast<int>(tile) - of_head * p.query_tiles) * queries;
        head = of_head % p.heads, batch = of_head / p.heads;
    }
};

// Copies rows of q, k or v: a thread always has the same chunk of a row, kPass rows apart.
template <class Tile>
struct RowCopies {
    static constexpr int kLanes = Tile::kChunks <= 4 ? 4 : Tile::kChunks <= 8 ? 8 : 16;
    static constexpr int kPass = Tile::kThreads / kLanes;
    static_assert(kPass % 8 == 0, "all of a thread's chunks have the same place in their rows' swizzle");

    const uint8_t* from;
    uint32_t pass_bytes;
    uint32_t to;  // offset
    int left;     // rows from this thread's next one on; none where its chunk lies behind the head
    bool mine;

    // `first`: the row that is copied first, of `rows`.
    __device__ __forceinline__ RowCopies(const uint8_t* first, uint32_t stride, int rows, int head_bytes) {
        const int row = static_cast<int>(threadIdx.x) / kLanes, chunk = static_cast<int>(threadIdx.x) % kLanes;
        from = first + static_cast<int64_t>(row) * stride + 16 * chunk;
        pass_bytes = kPass * stride;
        to = Tile::offset(row, chunk);
        left = 16 * chunk < head_bytes ? rows - row : 0;
        mine = kLanes == Tile::kChunks || chunk < Tile::kChunks;
    }

    // The next kRows rows, to shared address `tile`; zeros for those past the end.
    template <int kRows>
    __device__ __forceinline__ void next(uint32_t tile) {
#pragma unroll
        for (int i = 0; i < kRows / kPass; ++i) {
            if (mine) ptx::cp_async_16(tile + to + i * kPass * Tile::kRowBytes, from, left > i * kPass);
            from += pass_bytes;
        }
        left -= kRows;
    }
};

// Maximum and sum of a thread's rows, over the keys so far. The sum is this thread's part. Rows g and g + 8 of an m16
// tile are its rows 0 and 1.
template <int kMt>
struct RowStates {
    float max[kMt][2], sum[kMt][2];

    // s -> exp2(scale_log2 (s - max)), in place, and o and the sums along with a new maximum. kFar: s may be so far below
    // 0 that a product's rounding is more than 1: then the difference, which is exact where it counts, comes first.
    template <bool kFar, int kNt, int kOt>
    __device__ __forceinline__ void soften(float (&s)[kMt][kNt][4], float (&o)[kMt][kOt][4], float scale_log2) {
        constexpr float kSlack = 2.f;
        float top[kMt][2];
        bool grows[kMt][2], any = false;
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float t = fmaxf(s[mt][0][2 * r], s[mt][0][2 * r + 1]);
#pragma unroll
                for (int nt = 1; nt < kNt; ++nt) t = fmaxf(t, fmaxf(s[mt][nt][2 * r], s[mt][nt][2 * r + 1]));
                top[mt][r] = max_of_quad(t);
                // Not where both are -inf, which keeps -inf, nor where all of the row is NaN.
                grows[mt][r] = (top[mt][r] - max[mt][r]) * scale_log2 > kSlack;
                any |= grows[mt][r];
            }
        }
        if (__any_sync(0xffffffffu, any)) {
#pragma unroll
            for (int mt = 0; mt < kMt; ++mt) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const float by = grows[mt][r] ? ptx::exp2_approx((max[mt][r] - top[mt][r]) * scale_log2) : 1.f;
                    max[mt][r] = grows[mt][r] ? top[mt][r] : max[mt][r];
                    sum[mt][r] *= by;
#pragma unroll
                    for (int ot = 0; ot < kOt; ++ot) o[mt][ot][2 * r] *= by, o[mt][ot][2 * r + 1] *= by;
                }
            }
        }
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                const float from = max[mt][r] == -INFINITY ? 0.f : max[mt][r];
                const float offset = max[mt][r] == -INFINITY ? 0.f : -max[mt][r] * scale_log2;
                float part[2] = {};
#pragma unroll
                for (int nt = 0; nt < kNt; ++nt) {
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        float& v = s[mt][nt][2 * r + i];
                        v = ptx::exp2_approx(kFar ? (v - from) * scale_log2 : fmaf(v, scale_log2, offset));
                        part[i] += v;
                    }
                }
                sum[mt][r] += part[0] + part[1];
            }
        }
    }
};

// A key's bias in units of s. A finite one stays finite: where all keys have the most negative number, all count.
template <class T>
__device__ __forceinline__ float scaled_bias(const void* row, int key, float by) {
    constexpr float kLeast = -0x1p126f;
    const float v = Act16<T>::to_float(static_cast<const uint16_t*>(row)[key]);
    return v > -INFINITY ? fmaxf(v * by, kLeast) : v;
}

template <class Tile, class T, bool kBias>
__global__ void __launch_bounds__(Tile::kThreads, 2) attention_kernel(const __grid_constant__ AttentionArgs p) {
    SVDQ_DYNAMIC_SHARED(smem);
    constexpr int kMt = Tile::kMt, kKeys = Tile::kKeys, kStages = Tile::kStages, kSlot = Tile::kSlot;
    constexpr int kNt = kKeys / 8, kOt = Tile::kChunks;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const HeadPlace here(p, Tile::kQueries);
    const int blocks = (p.keys + kKeys - 1) / kKeys;
    const int64_t first_key = static_cast<int64_t>(here.batch) * p.keys;
    const int64_t kv_at = static_cast<int64_t>(here.head / p.heads_per_kv) * p.head_bytes;
    RowCopies<Tile> q_rows(p.q + (static_cast<int64_t>(here.batch) * p.queries + here.query) * p.q_stride +
                               static_cast<int64_t>(here.head) * p.head_bytes,
                           p.q_stride, p.queries - here.query, p.head_bytes);
    RowCopies<Tile> k_rows(p.k + first_key * p.k_stride + kv_at, p.k_stride, p.keys, p.head_bytes);
    RowCopies<Tile> v_rows(p.v + first_key * p.v_stride + kv_at, p.v_stride, p.keys, p.head_bytes);

    const uint32_t q_sm = ptx::smem_addr(smem), ring = q_sm + Tile::kQueryBytes;
    // Block i / 2 of k, or of v for an odd i, if there is one.
    const auto load = [&](int i, bool is_v, uint32_t slot) {
        if (i < 2 * blocks) (is_v ? v_rows : k_rows).template next<kKeys>(slot);
        ptx::cp_async_commit();  // also an empty group: wait counts groups
    };
    ptx::wait_for_previous();  // prepare
    q_rows.template next<Tile::kQueries>(q_sm);
#pragma unroll
    for (int i = 0; i < kStages - 1; ++i) load(i, i % 2 != 0, ring + i * kSlot);
    uint32_t slot = ring, refill = ring + (kStages - 1) * kSlot;
    // Makes slot i of the ring readable, whose address it returns, and refills the one that was read before it.
    const auto next_slot = [&](int i, bool is_v) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
        load(i + kStages - 1, is_v != (kStages % 2 == 0), refill);
        const uint32_t at = slot;
        refill = slot;
        slot = slot == ring + (kStages - 1) * kSlot ? ring : slot + kSlot;
        return at;
    };

    // What lanes give ldmatrix: of a 16 x 16 fragment in A's order, which is v's, too; of one in B's; of 32 rows.
    const uint32_t in_a = Tile::offset(lane % 16, lane / 16);
    const uint32_t in_b = Tile::offset(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const uint32_t in_tail = Tile::offset(lane, Tile::kChunks - 1);
    const uint32_t my_q = q_sm + warp * Tile::kRows * Tile::kRowBytes;

    uint32_t q[Tile::kKeepsQ ? Tile::kSteps : 1][kMt][4], q_tail[4];
    const auto load_q = [&](int step, uint32_t (&to)[kMt][4]) {
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
            ptx::ldmatrix_x4(to[mt], Tile::further(my_q + in_a + mt * 16 * Tile::kRowBytes, 2 * step));
    };

    RowStates<kMt> rows;
#pragma unroll
    for (int i = 0; i < 2 * kMt; ++i) rows.max[i / 2][i % 2] = -INFINITY, rows.sum[i / 2][i % 2] = 0.f;
    float o[kMt][kOt][4] = {};
#pragma unroll 1
    for (int block = 0; block < blocks; ++block) {
        float s[kMt][kNt][4] = {};
        if constexpr (kBias) {
            const uint8_t* const bias = p.bias + 2 * first_key;
#pragma unroll
            for (int i = 0; i < 2 * kNt; ++i) {
                const int key = block * kKeys + i / 2 * 8 + 2 * (lane % 4) + i % 2;
                const float b = key < p.keys ? scaled_bias<T>(bias, key, p.bias_scale) : -INFINITY;
#pragma unroll
                for (int mt = 0; mt < kMt; ++mt) s[mt][i / 2][i % 2] = s[mt][i / 2][2 + i % 2] = b;
            }
        }
        const uint32_t k_at = next_slot(2 * block, false);
        if (Tile::kKeepsQ && block == 0) {
#pragma unroll
            for (int step = 0; step < Tile::kSteps; ++step) load_q(step, q[step]);
            if constexpr (Tile::kTail) ptx::ldmatrix_x4(q_tail, my_q + in_tail);
        }
#pragma unroll
        for (int step = 0; step < Tile::kSteps; ++step) {
            auto& a = q[Tile::kKeepsQ ? step : 0];
            if constexpr (!Tile::kKeepsQ) load_q(step, a);
#pragma unroll
            for (int pair = 0; pair < kNt / 2; ++pair) {
                uint32_t b[4];
                ptx::ldmatrix_x4(b, Tile::further(k_at + in_b + pair * 16 * Tile::kRowBytes, 2 * step));
#pragma unroll
                for (int i = 0; i < 2 * kMt; ++i)
                    ptx::mma_16bit(T(), s[i % kMt][2 * pair + i / kMt], a[i % kMt], b[i / kMt * 2], b[i / kMt * 2 + 1]);
            }
        }
        if constexpr (Tile::kTail) {
#pragma unroll
            for (int four = 0; four < kNt / 4; ++four) {
                uint32_t b[4];
                ptx::ldmatrix_x4(b, k_at + in_tail + four * 32 * Tile::kRowBytes);
#pragma unroll
                for (int i = 0; i < 4 * kMt; ++i)
                    ptx::mma_16bit_k8(T(), s[i % kMt][4 * four + i / kMt], q_tail[i % kMt * 2], q_tail[i % kMt * 2 + 1],
                                      b[i / kMt]);
            }
        }
        const int left = p.keys - block * kKeys;
        if (!kBias && left < kKeys) {
#pragma unroll
            for (int i = 0; i < 4 * kNt; ++i)
                if (i / 4 * 8 + 2 * (lane % 4) + i % 2 >= left) {
#pragma unroll
                    for (int mt = 0; mt < kMt; ++mt) s[mt][i / 4][i % 4] = -INFINITY;
                }
        }
        rows.template soften<kBias>(s, o, p.scale_log2);

        const uint32_t v_at = next_slot(2 * block + 1, true);
        uint32_t b_tail[4];
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            uint32_t a[kMt][4];
#pragma unroll
            for (int i = 0; i < 4 * kMt; ++i) {
                const float (&two)[4] = s[i / 4][2 * step + i % 4 / 2];
                a[i / 4][i % 4] = Act16<T>::to_pair(two[i % 2 * 2], two[i % 2 * 2 + 1]);
            }
#pragma unroll
            for (int pair = 0; pair < kOt / 2; ++pair) {
                uint32_t b[4];
                ptx::ldmatrix_x4_trans(b, Tile::further(v_at + in_a + step * 16 * Tile::kRowBytes, 2 * pair));
#pragma unroll
                for (int i = 0; i < 2 * kMt; ++i)
                    ptx::mma_16bit(T(), o[i % kMt][2 * pair + i / kMt], a[i % kMt], b[i / kMt * 2], b[i / kMt * 2 + 1]);
            }
            if constexpr (Tile::kTail) {  // the last 8 columns, of two steps at a time
                if (step % 2 == 0) ptx::ldmatrix_x4_trans(b_tail, v_at + in_tail + step * 16 * Tile::kRowBytes);
#pragma unroll
                for (int mt = 0; mt < kMt; ++mt)
                    ptx::mma_16bit(T(), o[mt][kOt - 1], a[mt], b_tail[step % 2 * 2], b_tail[step % 2 * 2 + 1]);
            }
        }
    }

    // y: through this warp's rows of q, which it has read, to stores of whole lines.
    uint32_t again = threadIdx.x;
    ptx::keep(again);
    const int to_lane = static_cast<int>(again) % 32, row0 = static_cast<int>(again) / 32 * Tile::kRows;
    const uint32_t y_sm = q_sm + row0 * Tile::kRowBytes;
#pragma unroll
    for (int i = 0; i < 2 * kMt; ++i) {
        const float by = ptx::rcp_approx(sum_of_quad(rows.sum[i / 2][i % 2]));
        const uint32_t at = y_sm + Tile::offset(i * 8 + to_lane / 4, 0) + to_lane % 4 * 4;
#pragma unroll
        for (int ot = 0; ot < kOt; ++ot) {
            const float* const two = o[i / 2][ot] + i % 2 * 2;
            ptx::store_shared_4(Tile::further(at, ot), pack<T>(two[0] * by, two[1] * by));
        }
    }
    __syncwarp();
    const HeadPlace to(p, Tile::kQueries);
#pragma unroll
    for (int i = 0; i < Tile::kRows * Tile::kChunks / 32; ++i) {
        const int row = (32 * i + to_lane) / Tile::kChunks, chunk = (32 * i + to_lane) % Tile::kChunks;
        const int query = to.query + row0 + row;
        if (query < p.queries && 16 * chunk < p.head_bytes) {
            const int part = query < p.split ? 0 : 1;
            const int in_part = part ? query - p.split : query, length = part ? p.queries - p.split : p.split;
            const int64_t at = (static_cast<int64_t>(to.batch) * length + in_part) * p.heads + to.head;
            *reinterpret_cast<uint4*>(p.y[part] + at * p.head_bytes + 16 * chunk) =
                ptx::load_shared_16(y_sm + Tile::offset(row, chunk));
        }
    }
}

}  // namespace svdq::portable
