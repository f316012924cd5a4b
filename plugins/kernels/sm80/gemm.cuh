// Kernel (b), any sm_80+: y[M,N] = act( Q(x^).Q(W)^T + t.lora_up^T + bias )
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
//   scales of codes, bytes per row             2        -        4        -
//   wscale, bytes per row of the weight        2        1        4        2
//   then t [kBm, 16], lora_up [kBn, 16]        32-byte rows in the same places
// Shared memory: a large stage is 8.5, 12.1, 9, 20.3 KiB.
// Numerics: the K loop as the format says; then fp32 times wscale2 (and the row's scale); low-rank into the
// same accumulators; bias; activation; one rounding. One CTA sums all of K in order: deterministic.
//
// A format (format_*.cuh) is a struct with the bytes above, an accumulator type and step(), which consumes
// one stage.
#pragma once

#include "../common/launch.h"
#include "epilogue.cuh"

namespace svdq::sm80 {

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

// Copies the rows of one operand: kRows rows of kRowBytes, by all threads. Rows at or past `rows` become
// zeros.
template <int kRows, int kRowBytes, int kThreads>
__device__ __forceinline__ void load_rows(uint32_t dst, const uint8_t* src, int64_t pitch, int row0, int rows) {
    constexpr int kChunks = kRowBytes / 16;
#pragma unroll
    for (int i = 0; i < (kRows * kChunks + kThreads - 1) / kThreads; ++i) {
        const int at = i * kThreads + threadIdx.x;
        const int row = at / kChunks, chunk = at % kChunks;
        if (kRows * kChunks % kThreads != 0 && row >= kRows) break;
        const bool valid = row0 + row < rows;
        const uint8_t* from = valid ? src + static_cast<int64_t>(row0 + row) * pitch + 16 * chunk : src;
        ptx::cp_async_16(dst + row_offset<kChunks>(row, chunk), from, valid);
    }
}

template <class F, class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, ptx::min_ctas(Tile::kMt > 1 ? F::kMinCtas : 1))
    gemm_kernel(const GemmArgs p) {
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

    // This thread's share of every stage: one chunk of one weight row, and perhaps a chunk of scales.
    // Addresses are made from row numbers at each step: pointers kept across the loop would cost the
    // registers that let two CTAs share an SM.
    const int b_column = threadIdx.x / 2, b_chunk = threadIdx.x % 2;
    const int b_row = columns.weight_row(b_column);
    const bool b_valid = b_row < p.n;
    const uint32_t b_dst = S::kB + row_offset<2>(b_column, b_chunk);

    constexpr int kScaleChunk = F::kBScaleBytes == 1 ? 8 : 16;  // bytes of one copy; 8 columns are one or two
    constexpr int kColumnsPerCopy = kScaleChunk / F::kBScaleBytes;
    const int s_column = threadIdx.x * kColumnsPerCopy;
    const bool s_mine = s_column < Tile::kBn;
    const int s_row = s_mine ? columns.weight_row(s_column) : p.n;
    const bool s_valid = s_row < p.n;

    const int k_steps = p.k / 64, steps = k_steps + p.r / 16;
    const uint32_t ring = ptx::smem_addr(smem);

    auto load_stage = [&](int step) {
        const uint32_t stage = ring + step % F::kStages * S::kBytes;
        if (step < k_steps) {
            load_rows<Tile::kBm, F::kARowBytes, Tile::kThreads>(
                stage + S::kA, p.codes + static_cast<int64_t>(step) * F::kARowBytes,
                static_cast<int64_t>(k_steps) * F::kARowBytes, m0, p.m);
            const int64_t w_at = static_cast<int64_t>(b_row) * (p.k / 2) + step * 32 + 16 * b_chunk;
            ptx::cp_async_16(stage + b_dst, p.qweight + (b_valid ? w_at : 0), b_valid);
            if (s_mine) {
                const int64_t s_at = (static_cast<int64_t>(step) * p.n + s_row) * F::kBScaleBytes;
                const uint8_t* from = p.wscale + (s_valid ? s_at : 0);
                const uint32_t to = stage + S::kBScale + s_column * F::kBScaleBytes;
                if constexpr (kScaleChunk == 8) ptx::cp_async_8(to, from, s_valid);
                else ptx::cp_async_16(to, from, s_valid);
            }
            if constexpr (F::kAScaleBytes > 0) {
                // Kernel (a) has written the scales of whole m16 tiles, so of all rows of a chunk or of none.
                const int at = threadIdx.x * 16;
                if (at < Tile::kBm * F::kAScaleBytes)
                    ptx::cp_async_16(stage + S::kAScale + at,
                                     p.scales + (step * p.m_pad + m0) * F::kAScaleBytes + at,
                                     m0 + at / F::kAScaleBytes < p.m);
            }
        } else if (step < steps) {
            const int r_step = step - k_steps;
            load_rows<Tile::kBm, 32, Tile::kThreads>(stage + S::kA, p.t + r_step * 32, p.r * 2, m0, p.m);
            const int64_t up_at = static_cast<int64_t>(b_row) * p.r * 2 + r_step * 32 + 16 * b_chunk;
            ptx::cp_async_16(stage + b_dst, p.lora_up + (b_valid ? up_at : 0), b_valid);
        }
        ptx::cp_async_commit();  // also an empty group: wait counts groups
    };
    // Makes stage `step` readable and refills the one that was read before it.
    auto next_stage = [&](int step, int a_row_bytes) {
        ptx::cp_async_wait<F::kStages - 2>();
        __syncthreads();
        load_stage(step + F::kStages - 1);
        const int at = step % F::kStages * S::kBytes;
        return WarpStage{ring + at + S::kA + warp_m * Tile::kWarpM * a_row_bytes,
                         ring + at + S::kB + warp_n * Tile::kWarpN * 32,
                         smem + at + S::kAScale + warp_m * Tile::kWarpM * F::kAScaleBytes,
                         smem + at + S::kBScale + warp_n * Tile::kWarpN * F::kBScaleBytes, lane};
    };

    typename F::Acc sum[kMt][kNt][4] = {};
#pragma unroll
    for (int step = 0; step < F::kStages - 1; ++step) load_stage(step);
#pragma unroll 1
    for (int step = 0; step < k_steps; ++step) F::template step<kMt, kNt>(sum, next_stage(step, F::kARowBytes));

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
    for (int step = k_steps; step < steps; ++step) {
        const WarpStage stage = next_stage(step, 32);
        uint32_t b[kNt / 2][4];
#pragma unroll
        for (int pair = 0; pair < kNt / 2; ++pair) load_b(b[pair], stage.b + pair * 16 * 32, lane);
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
            uint32_t a[4];
            load_a<2>(a, stage.a + mt * 16 * 32, 0, lane);
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt)
                ptx::mma_16bit(T(), acc[mt][nt], a, b[nt / 2][nt % 2 * 2], b[nt / 2][nt % 2 * 2 + 1]);
        }
    }

    ptx::cp_async_wait<0>();
    __syncthreads();  // the ring becomes the slabs
    store_tile<T, Tile>(p, columns, reinterpret_cast<float*>(smem + warp * Slab<Tile>::kBytes), acc,
                        m0 + warp_m * Tile::kWarpM, warp_n, lane);
}

template <class F, class T, class Tile>
cudaError_t launch_gemm_tile(const GemmArgs& g, cudaStream_t stream) {
    const int out_per_tile = g.activation == SVDQ_ACT_GEGLU ? Tile::kBn / 2 : Tile::kBn;
    const int64_t tiles_m = (g.m + Tile::kBm - 1) / Tile::kBm;
    const int64_t tiles_n = (g.n_out + out_per_tile - 1) / out_per_tile;
    if (tiles_m * tiles_n > 0x7fffffff) return cudaErrorInvalidConfiguration;
    constexpr int kShared = Stage<F, Tile>::kSharedBytes;
    const dim3 grid(static_cast<unsigned>(tiles_m * tiles_n));
    return launch_kernel(gemm_kernel<F, T, Tile>, grid, Tile::kThreads, kShared, stream, g);
}

inline cudaError_t multiprocessors(int* count) {
    int device = 0;
    const cudaError_t e = cudaGetDevice(&device);
    return e != cudaSuccess ? e : cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

// Outputs that the busiest multiprocessor computes; an output of a medium tile takes longer, as less of what
// is loaded is used twice.
constexpr double kMediumTileCost = 1.35;

template <class Tile>
double tile_cost(const GemmArgs& g, int sms) {
    const int64_t tiles_m = (g.m + Tile::kBm - 1) / Tile::kBm, tiles_n = (g.n + Tile::kBn - 1) / Tile::kBn;
    return static_cast<double>((tiles_m * tiles_n + sms - 1) / sms) * Tile::kBm * Tile::kBn;
}

// F is the format with the act dtype T it was made for.
template <class F, class T>
cudaError_t launch_gemm(const LinearArgs& args, cudaStream_t stream) {
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
    g.activation = p.activation;
    constexpr int kFewTokens = 32;  // up to here two small tiles of M read the weight faster than a larger one
    if (p.m <= kFewTokens) return launch_gemm_tile<F, T, SmallTile>(g, stream);
    int sms = 0;
    const cudaError_t e = multiprocessors(&sms);
    if (e != cudaSuccess) return e;
    return tile_cost<LargeTile>(g, sms) <= tile_cost<MediumTile>(g, sms) * kMediumTileCost
               ? launch_gemm_tile<F, T, LargeTile>(g, stream)
               : launch_gemm_tile<F, T, MediumTile>(g, stream);
}

}  // namespace svdq::sm80
