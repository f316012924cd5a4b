// gemm, any sm_80+: y[M,N] = act( Q(x^).Q(W)^T + t.lora_up^T + bias )
//
// Grid: one CTA per kBm x kBn of the product; K is walked in steps of 64, then R in steps of 16, through one
// ring of kStages shared-memory stages filled by cp.async.
//
//            N ->  kBn = 128
//          +----+----+----+----+     LargeTile: 8 warps = 2 (M) x 4 (N), warp tile 64 x 32
//   M 128  | w0 | w1 | w2 | w3 |     MediumTile: 64 x 64, 4 warps = 2 x 2, warp tile 32 x 32
//          | w4 | w5 | w6 | w7 |     SmallTile: 16 x 64, 4 warps, warp tile 16 x 16
//          +----+----+----+----+
//
// Operands (per stage):                        int4     w4a8     nvfp4    w4a16
//   codes    [kBm, 64]   bytes per row         32       64       32       128        row-major, swizzled
//   qweight  [kBn, 64]   bytes per row         32       32       32       32         row-major, swizzled
//   scales of codes, bytes per row             4        -        4        -
//   wscale, bytes per row of the weight        2        1        4        2
//   then t [kBm, 16], lora_up [kBn, 16]        32-byte rows in the same places
// Shared memory: a large stage is 8.8, 12.1, 9, 20.3 KiB.
// Numerics: the K loop as the format says; then fp32 times wscale2 (and the row's scale); low-rank into the
// same accumulators; bias; activation; one rounding. One CTA sums all of K in order; where that would leave
// multiprocessors idle (choice.h), several share it, and the last one adds up their sums in order (split.cuh):
// deterministic.
//
// A format (format_*.cuh) is a struct with the bytes above, an accumulator type and step(), which consumes
// one stage. What becomes of the sums is the epilogue's: StoreY (epilogue.cuh) or QuantizeHidden (mlp_epilogue.cuh).
#pragma once

#include "../common/device.h"
#include "../common/launch.h"
#include "../ptx/barrier.cuh"
#include "../ptx/copy.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/registers.cuh"
#include "choice.h"
#include "epilogue.cuh"
#include "split.cuh"

namespace svdq::portable {

template <class F, class Tile>
struct Stage {
    static constexpr int kA = 0;
    static constexpr int kB = kA + Tile::kBm * F::kARowBytes;
    static constexpr int kAScale = kB + Tile::kBn * 32;
    static constexpr int kBScale = kAScale + Tile::kBm * F::kAScaleBytes;
    static constexpr int kBytes = (kBScale + Tile::kBn * F::kBScaleBytes + 127) / 128 * 128;
    static constexpr int kRing = kBytes * F::kStages;
    static constexpr int kSharedBytes = kRing > Slab<Tile>::kCtaBytes ? kRing : Slab<Tile>::kCtaBytes;
    static_assert(kSharedBytes <= 99 * 1024, "sm_86 and sm_89 give a block at most 99 KiB");
};

// What one thread copies of every stage of K: up to kACopies chunks of codes, one of qweight, perhaps one of
// scales. Pointers that move along with K: a step costs an addition each, where addresses made from row numbers
// would cost a third of the instructions that are not the product itself. Rows past the end of a matrix are its
// last ones again, or zeros: what they become is not stored.
template <class F, class Tile>
struct Copies {
    using S = Stage<F, Tile>;
    static constexpr int kAChunks = F::kARowBytes / 16;
    static constexpr int kARows = Tile::kThreads / kAChunks;  // rows that all threads copy at a time
    static constexpr int kACopies = (Tile::kBm + kARows - 1) / kARows;
    static constexpr int kScaleBytes = F::kBScaleBytes == 1 ? 8 : 16;  // of one copy; 8 columns are one or two
    static constexpr int kBScaleThreads = Tile::kBn * F::kBScaleBytes / kScaleBytes;
    static constexpr int kAScaleThreads = Tile::kBm * F::kAScaleBytes / 16;
    static_assert(kARows % 8 == 0, "all of a thread's chunks have the same place in their rows' swizzle");
    static_assert(kBScaleThreads + kAScaleThreads <= Tile::kThreads, "one copy of scales per thread");

    const uint8_t *a, *b, *scale;
    uint32_t a_to, b_to, scale_to;  // byte offsets in a stage
    uint32_t scale_step;            // 8-byte units from one group to the next
    int a_rows;                     // rows of the matrix from this thread's first one on, at least 1
    bool scale_mine;

    // Starts at group `group` of K.
    __device__ __forceinline__ Copies(const GemmArgs& p, const Columns<Tile>& columns, int m0, int group) {
        const int thread = threadIdx.x;
        const int a_row = thread / kAChunks, a_chunk = thread % kAChunks;
        a_rows = max(p.m - m0 - a_row, 1);
        a = p.codes + static_cast<int64_t>(min(m0 + a_row, p.m - 1)) * pitch(p) + 16 * a_chunk;
        a_to = S::kA + row_offset<kAChunks>(a_row, a_chunk);

        b = p.qweight + static_cast<int64_t>(min(columns.weight_row(thread / 2), p.n - 1)) * (p.k / 2) +
            16 * (thread % 2);
        b_to = S::kB + row_offset<2>(thread / 2, thread % 2);

        scale_mine = thread < kBScaleThreads + kAScaleThreads;
        if (thread < kBScaleThreads || kAScaleThreads == 0) {
            constexpr int kColumns = kScaleBytes / F::kBScaleBytes;
            const int column = scale_mine ? thread * kColumns : 0;
            scale = p.wscale + min(columns.weight_row(column), p.n - kColumns) * F::kBScaleBytes;
            scale_step = static_cast<uint32_t>(p.n) * F::kBScaleBytes / 8;
            scale_to = S::kBScale + thread * kScaleBytes;
        } else {
            // quantize has written the scales of whole m16 tiles, so all of a chunk or none of it.
            constexpr int kTileBytes = F::kAScaleBytes > 0 ? 16 * F::kAScaleBytes : 1;
            const int at = scale_mine ? (thread - kBScaleThreads) * 16 : 0;
            const bool valid = m0 + at / kTileBytes * 16 < p.m;
            scale = p.scales + static_cast<int64_t>(m0) * F::kAScaleBytes + (valid ? at : at % kTileBytes);
            scale_step = static_cast<uint32_t>(p.m_pad / 8 * F::kAScaleBytes);
            scale_to = S::kAScale + at;
        }
        a += static_cast<int64_t>(group) * F::kARowBytes;
        b += static_cast<int64_t>(group) * 32;
        scale += static_cast<uint64_t>(group) * scale_step * 8;
    }

    static __device__ __forceinline__ int64_t pitch(const GemmArgs& p) {
        return static_cast<int64_t>(p.k / 64) * F::kARowBytes;
    }

    // Copies the next group of 64 into the stage at shared address `stage`.
    __device__ __forceinline__ void next(const GemmArgs& p, uint32_t stage) {
#pragma unroll
        for (int i = 0; i < kACopies; ++i)
            if (kACopies * kARows == Tile::kBm || threadIdx.x < Tile::kBm * kAChunks)
                ptx::cp_async_16(stage + a_to + i * kARows * F::kARowBytes, a + i * kARows * pitch(p),
                                 i == 0 || a_rows > i * kARows);
        ptx::cp_async_16(stage + b_to, b, true);
        if (scale_mine) {
            if constexpr (kScaleBytes == 8)
                ptx::cp_async_8(stage + scale_to, scale);
            else
                ptx::cp_async_16(stage + scale_to, scale, true);
        }
        a += F::kARowBytes;
        b += 32;
        scale += static_cast<uint64_t>(scale_step) * 8;
    }
};

// The same for 16 columns of t and lora_up: few steps, so their addresses are made where they are used.
template <class F, class Tile>
__device__ __forceinline__ void load_rank(const GemmArgs& p, const Columns<Tile>& columns, int m0, int step,
                                          uint32_t stage) {
    using S = Stage<F, Tile>;
    uint32_t thread = threadIdx.x;
    ptx::keep(thread);  // nothing of this in registers of the loop over K
    const int row = thread / 2, chunk = thread % 2;
    if (row < Tile::kBm) {
        const bool valid = m0 + row < p.m;
        const int64_t at = static_cast<int64_t>(m0 + row) * p.r * 2 + step * 32 + 16 * chunk;
        ptx::cp_async_16(stage + S::kA + row_offset<2>(row, chunk), p.t + (valid ? at : 0), valid);
    }
    const int b_row = columns.weight_row(row);
    const bool b_valid = b_row < p.n;
    const int64_t b_at = static_cast<int64_t>(b_row) * p.r * 2 + step * 32 + 16 * chunk;
    ptx::cp_async_16(stage + S::kB + row_offset<2>(row, chunk), p.lora_up + (b_valid ? b_at : 0), b_valid);
}

template <class F, class T, class Tile, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, min_ctas(Tile::kMt > 1 ? F::kMinCtas : 1))
    gemm_kernel(const typename Epilogue::Args p) {
    SVDQ_DYNAMIC_SHARED(smem);
    using S = Stage<F, Tile>;
    constexpr int kMt = Tile::kMt, kNt = Tile::kNt;

    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int warp_m = warp / Tile::kWn, warp_n = warp % Tile::kWn;
    int tile_m, tile_n;
    const int tiles_m = (p.m + Tile::kBm - 1) / Tile::kBm;
    tile_of_block(blockIdx.x, tiles_m, gridDim.x / tiles_m, tile_m, tile_n);
    const int m0 = tile_m * Tile::kBm;  // m <= 2^30 (checked by the C API)
    const Columns<Tile> columns(p, tile_n);

    // Steps over K, then over R; this CTA's are step .. end - 1.
    const int k_steps = p.k / 64, steps = k_steps + p.r / 16;
    int step = 0, end = steps;
    if constexpr (Epilogue::kSplits) {
        step = steps * static_cast<int>(blockIdx.y) / static_cast<int>(gridDim.y);
        end = steps * static_cast<int>(blockIdx.y + 1) / static_cast<int>(gridDim.y);
    }
    const int k_end = min(end, k_steps);
    const uint32_t ring = ptx::smem_addr(smem);
    Copies<F, Tile> copies(p, columns, m0, step);
    uint32_t stage = 0, refill = S::kRing - S::kBytes;  // offsets: of the next step, of the one read before it
    uint32_t a_scale = ring + S::kAScale + warp_m * Tile::kWarpM * F::kAScaleBytes + F::a_scale_offset(lane);
    uint32_t b_scale = ring + S::kBScale + warp_n * Tile::kWarpN * F::kBScaleBytes + F::b_scale_offset(lane);
    ptx::keep(a_scale), ptx::keep(b_scale);
    // Makes the next stage readable and refills, by load(shared address), the one that was read before it.
    auto next_stage = [&](int a_row_bytes, auto load) {
        ptx::cp_async_wait<F::kStages - 2>();
        __syncthreads();
        load(ring + refill);
        ptx::cp_async_commit();  // also an empty group: wait counts groups
        const uint32_t at = ring + stage, scales = stage;
        refill = stage;
        stage = stage == S::kRing - S::kBytes ? 0 : stage + S::kBytes;
        return WarpStage{at + S::kA + warp_m * Tile::kWarpM * a_row_bytes, at + S::kB + warp_n * Tile::kWarpN * 32,
                         a_scale + scales, b_scale + scales, lane};
    };
    auto load_k = [&](uint32_t to) { copies.next(p, to); };
    auto load_any = [&](int at) {  // of K, of R, or past the end
        return [&, at](uint32_t to) {
            if (at < k_end)
                load_k(to);
            else if (at < end)
                load_rank<F, Tile>(p, columns, m0, at - k_steps, to);
        };
    };

    typename F::Acc sum[kMt][kNt][4] = {};
    constexpr int kAhead = F::kStages - 1;
    ptx::wait_for_previous();  // quantize
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
        load_any(step + i)(ring + i * S::kBytes);
        ptx::cp_async_commit();
    }
#pragma unroll 1
    for (; step < k_end - kAhead; ++step)  // nothing but K ahead: no branch
        F::template step<kMt, kNt>(sum, next_stage(F::kARowBytes, load_k));
#pragma unroll 1
    for (; step < k_end; ++step) F::template step<kMt, kNt>(sum, next_stage(F::kARowBytes, load_any(step + kAhead)));

    // ---- to real units ------------------------------------------------------------------------------------
    float acc[kMt][kNt][4];
    float row_scale[kMt][2];
#pragma unroll
    for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = m0 + warp_m * Tile::kWarpM + 16 * mt + 8 * h + lane / 4;
            row_scale[mt][h] = F::kRowScale && row < p.m ? reinterpret_cast<const float*>(p.scales)[row] : 1.f;
        }
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
        const int row = columns.weight_row(warp_n * Tile::kWarpN + 8 * nt + 2 * (lane % 4));
        float2 s = make_float2(0.f, 0.f);
        if (row < p.n) s = __ldg(reinterpret_cast<const float2*>(p.wscale2 + row));
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                acc[mt][nt][i] = static_cast<float>(sum[mt][nt][i]) * (row_scale[mt][i / 2] * (i % 2 ? s.y : s.x));
    }

    // ---- low-rank branch ----------------------------------------------------------------------------------
#pragma unroll 1
    for (; step < end; ++step) {
        const WarpStage at = next_stage(32, load_any(step + kAhead));
        uint32_t b[kNt / 2][4];
#pragma unroll
        for (int pair = 0; pair < kNt / 2; ++pair) load_b(b[pair], at.b + pair * 16 * 32, lane);
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
            uint32_t a[4];
            load_a<2>(a, at.a + mt * 16 * 32, 0, lane);
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt)
                ptx::mma_16bit(T(), acc[mt][nt], a, b[nt / 2][nt % 2 * 2], b[nt / 2][nt % 2 * 2 + 1]);
        }
    }

    ptx::cp_async_wait<0>();
    if constexpr (Epilogue::kSplits)
        if (gridDim.y > 1 && !sum_splits<Tile>(p, acc)) return;
    __syncthreads();  // the ring becomes the slabs
    Epilogue::run(p, columns, smem, acc, m0, warp, lane);
}

template <class F, class T, class Tile, class Epilogue = StoreY<T, Tile>>
cudaError_t launch_gemm_tile(const typename Epilogue::Args& g, int splits, bool overlap, cudaStream_t stream) {
    const int64_t tiles_m = (g.m + Tile::kBm - 1) / Tile::kBm;
    const int64_t tiles_n = (g.n + Tile::kBn - 1) / Tile::kBn;
    if (tiles_m * tiles_n > 0x7fffffff) return cudaErrorInvalidConfiguration;
    constexpr int kShared = Stage<F, Tile>::kSharedBytes;
    const dim3 grid(static_cast<unsigned>(tiles_m * tiles_n), static_cast<unsigned>(splits));
    return launch_kernel(gemm_kernel<F, T, Tile, Epilogue>, {grid, Tile::kThreads, kShared, overlap}, stream, g);
}

inline GemmArgs gemm_args(const LinearArgs& args) {
    const svdq_linear_params& p = args.p;
    GemmArgs g = {};
    g.codes = args.codes();
    g.scales = args.scales();
    g.t = args.t();
    g.qweight = static_cast<const uint8_t*>(p.qweight);
    g.wscale = static_cast<const uint8_t*>(p.wscale);
    g.lora_up = static_cast<const uint8_t*>(p.lora_up);
    g.bias = static_cast<const uint16_t*>(p.bias);
    g.wscale2 = static_cast<const float*>(p.wscale2);
    g.y = static_cast<uint16_t*>(p.y);
    g.m_pad = args.ws.m_pad;
    g.m = p.m, g.n = p.n, g.k = p.k, g.r = p.r, g.n_out = args.n_out();
    g.function = args.function();
    g.parts = args.parts();
    g.counters = args.counters();
    return g;
}

// Launches the chosen row of kTiles: a table of launchers, one per row.
template <class F, class T, int... kRow>
cudaError_t launch_row(const GemmArgs& g, const Choice& choice, bool overlap, cudaStream_t stream,
                       std::integer_sequence<int, kRow...>) {
    constexpr decltype(&launch_gemm_tile<F, T, LargestTile>) kLaunch[] = {launch_gemm_tile<F, T, TileAt<kRow>>...};
    return kLaunch[choice.tile](g, choice.splits, overlap, stream);
}

// F is the format with the act dtype T it was made for.
template <class F, class T>
cudaError_t launch_gemm(const LinearArgs& args, cudaStream_t stream) {
    int sms = 0;
    if (const cudaError_t e = multiprocessors(&sms); e != cudaSuccess) return e;
    const Choice choice = choose(args.p, args.ws, sms);
    return launch_row<F, T>(gemm_args(args), choice, args.overlap, stream, EveryTile());
}

}  // namespace svdq::portable
