// gemm for few tokens: y[M, N] = act( x^ . Q(W)^T + t.lora_up^T + bias ), M <= 16. Bound by the read of W.
//
// Grid: one CTA per kRows = 16 kTiles rows of W, over all of K. Its warps take K in pairs of groups (128
// elements), warp w pairs w, w + kWarps, ...; each has a ring of kStages such steps, filled by cp.async, and
// waits for nobody else until the end. Last through the ring go wscale2 and the warp's first k16 step of lora_up:
// fetched where they are used, they would cost two memory latencies more.
//
//             K ->   128    128         128    128
//           +------+------+--   --+------+------+--
//   N rows  |  w0  |  w1  |  ...  |  w0  |  w1  |  ...     64 contiguous bytes a row and step
//           +------+------+--   --+------+------+--
//
// Operands of mma.sync m16n8k16:
//   A = W     16 rows of codes by ldmatrix, unpacked to exact integers in the act dtype (common/s4.cuh)
//   B = x^    8 tokens; a lane of a missing token takes the last one's values, its columns are not stored
//   Shared memory: ring | bias | x^ of as many elements of K as fit kXBytes, in B's order; longer K goes in
//   chunks. x^ is made here from x; only t comes from lora_down, and it is waited for after the whole of K.
//
// W must not stand still while x^ is made, nor x wait behind W: x is asked for first, then all stages of the ring.
//
// Programmatic dependent launch (sm_90). With a rank, lora_down comes before; it lets this kernel start when all
// that was before it has ended, so only t is waited for. Without one this kernel itself may start beside any
// other (p.early), and waits for that one's end.
//
// Numerics: a group of 64 is summed into a fresh fp32 accumulator and multiplied by its scale; fp32 across a
// warp's groups in ascending order; times wscale2; low-rank into the same sums (warp w: k16 steps w, w +
// kWarps, ...); then the warps' sums in warp order; bias; activation; one rounding. A token with NaN or Inf
// in x becomes NaN.
#pragma once

#include "../common/activate.cuh"
#include "../common/activation_exact.cuh"
#include "../common/device.h"
#include "../common/octet.cuh"
#include "../common/s4.cuh"
#include "../common/swizzle.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/copy.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/registers.cuh"
#include "svdq/svdq.h"

namespace svdq::gemv {

struct GemvArgs {
    const uint16_t* x;        // [M, K] act dtype
    const uint16_t* act_mul;  // [K]
    const uint8_t* qweight;   // [N, K/2]
    const uint16_t* wscale;   // [K/64, N]
    const uint16_t* t;        // [M, R], written by lora_down
    const uint16_t* lora_up;  // [N, R]
    const uint16_t* bias;     // [N]
    const float* wscale2;     // [N]
    uint16_t* y;              // [M, n_out]
    int m, n, k, r, n_out;
    int function;  // svdq_activation of each sum, or of each gate
    float shift;
    int chunk;   // elements of K whose x^ is in shared memory at a time: a multiple of 128 kWarps, or all
    bool early;  // launched beside a kernel that may write any operand: none is read before that one's end
};

// kTiles: m16 tiles of W per CTA. kNt: n8 tiles of tokens. kMinCtas: per SM, for the register allocation.
template <int kTiles_, int kNt_, int kWarps_, int kStages_, int kMinCtas_>
struct Shape {
    static constexpr int kMinCtas = kMinCtas_;
    static constexpr int kTiles = kTiles_, kNt = kNt_, kWarps = kWarps_, kStages = kStages_;
    static constexpr int kRows = 16 * kTiles, kThreads = 32 * kWarps;
    static constexpr int kCodeBytes = kRows * 64;                   // of two groups
    static constexpr int kStageBytes = kCodeBytes + 2 * kRows * 2;  // and their scales, [group][row]
    static constexpr int kRingBytes = kStageBytes * kStages;        // of one warp
    static constexpr int kPitch = kRows + 4;                        // floats, of the sums [token][row]
    static constexpr int kBias = kWarps * kRingBytes;
    static constexpr int kX = kBias + kRows * 2;
    static constexpr int kXBytes = 32 * 1024;
    static_assert(8 * kNt * kPitch * 4 <= kRingBytes, "a warp's sums take the place of its ring");
    static_assert((kThreads & (kThreads - 1)) == 0, "a power of two");
    static_assert(kRows / 4 <= 32, "a lane per copy of scales");
    static_assert(kRows * 32 <= kStageBytes, "a k16 step of lora_up takes the place of a stage");
    static_assert((kStages & (kStages - 1)) == 0, "a power of two: the stage is taken from the step at each step");
    static_assert(kStageBytes % 64 == 0, "a stage starts where its rows' chunks are XORed");
    static_assert(kX % 16 == 0 && kStageBytes % 16 == 0, "16-byte copies");
};

// Row j of a CTA's tile -> row of qweight, wscale, lora_up, bias. If gated, the first half of the tile
// is "value", the second "gate". Aligned runs of 8 stay runs of 8; runs past the end are the last run again,
// and are not stored.
template <int kRows, bool kGated>
struct Rows {
    static constexpr int kOutputs = kGated ? kRows / 2 : kRows;
    int out0, last, half;  // half: from a value's row to its gate's

    __device__ __forceinline__ explicit Rows(const GemvArgs& p)
        : out0(static_cast<int>(blockIdx.x) * kOutputs), last(min(kOutputs, p.n_out - out0) - 8), half(p.n_out) {}

    // Row 8 run + r.
    __device__ __forceinline__ int weight_row(int run, int r) const {
        const bool gate = 8 * run >= kOutputs;
        return out0 + min(8 * run - (gate ? kOutputs : 0), last) + r + (gate ? half : 0);
    }
};

// A thread's part of x^: of every token of its side of the CTA, octets first, first + side, ... of K, kAhead of
// them loaded together. load_first() and make() apart, so that the first loads of x go before those of W.
template <class T, int kThreads, int kAhead>
struct XPart {
    static_assert((kThreads & (kThreads - 1)) == 0, "a power of two");
    const GemvArgs& p;
    int side, token0, first;
    Octet x[kAhead], mul[kAhead];

    __device__ __forceinline__ explicit XPart(const GemvArgs& args) : p(args) {
        side = p.m > 1 ? kThreads / 2 : kThreads;  // threads along K
        token0 = threadIdx.x / side, first = threadIdx.x & (side - 1);
    }

    // kAhead octets from `octet` on of elements [k0, k0 + elements).
    __device__ __forceinline__ void load(int token, int octet, int k0, int elements) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int at = k0 + 8 * (octet + i * side);
            const bool valid = token < p.m && at < k0 + elements;
            x[i] = load_octet<true>(p.x + static_cast<int64_t>(token) * p.k + at, valid);
            mul[i] = load_octet<true>(p.act_mul + at, valid);
        }
    }

    // Their x^, as B wants it: 16-byte units
    //   [group][half of the group][token][c],  unit = elements 8c..8c+7 of the half, paired up.
    // Returns whether they were finite.
    __device__ __forceinline__ bool store(uint8_t* to, int token, int octet, int elements) {
        uint32_t most = 0;
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int o = octet + i * side;
            if (o >= elements / 8) break;
            most = max_bits(most, x[i]);
            smooth<T>(x[i], mul[i], p.shift);
            const Octet pairs = pair_up(x[i]);
            *reinterpret_cast<uint4*>(to + (o / 4 * p.m + token) * 64 + o % 4 * 16) =
                make_uint4(pairs.pair[0], pairs.pair[1], pairs.pair[2], pairs.pair[3]);
        }
        return max_halves(most) < Act16<T>::kInfBits;
    }

    __device__ __forceinline__ void load_first() { load(token0, first, 0, min(p.chunk, p.k)); }

    // x^ of elements [k0, k0 + elements) of every token into `to`; of k0 = 0, load_first() has been called.
    // Returns a bit per token that had a NaN or Inf here.
    __device__ __forceinline__ uint32_t make(uint8_t* to, int k0, int elements) {
        uint32_t bad = 0;
        bool loaded = k0 == 0;
        for (int token = token0; token < p.m; token += kThreads / side)
            for (int octet = first; octet < elements / 8; octet += kAhead * side) {
                if (!loaded) load(token, octet, k0, elements);
                loaded = false;
                if (!store(to, token, octet, elements)) bad |= 1u << token;
            }
        return bad;
    }
};

template <class T, class S, bool kGated>
__global__ void __launch_bounds__(S::kThreads, min_ctas(S::kMinCtas)) gemv_kernel(const GemvArgs p) {
    SVDQ_DYNAMIC_SHARED(smem);
    __shared__ uint32_t bad_tokens[S::kWarps];
    constexpr int kTiles = S::kTiles, kNt = S::kNt, kRows = S::kRows;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int g = lane / 4, c = lane % 4;
    const Rows<kRows, kGated> rows(p);
    const uint32_t groups = static_cast<uint32_t>(p.k) / 64, pairs = (groups + 1) / 2;
    uint8_t* const ring = smem + warp * S::kRingBytes;
    const uint32_t ring_at = ptx::smem_addr(ring);
    const int r_steps = p.r / 16;

    if (p.early) ptx::wait_for_previous();
    ptx::launch_dependents();  // what comes next waits for this kernel's end before it reads or writes anything
    XPart<T, S::kThreads, kNt == 1 ? 2 : 1> x_part(p);
    x_part.load_first();
    __syncwarp();  // without it ptxas moves these loads behind those of W

    // A lane copies 16-byte chunk c of rows g, g + 8, ... of a step: two chunks a group. And, lanes below kRows /
    // 4, the scales of 8 rows.
    constexpr int kRuns = kGated ? kTiles : 2 * kTiles;  // of 8 rows; gates lie as values do
    const uint8_t* code_from[2 * kTiles / kRuns];
    uint32_t run_offset[kRuns];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; i += kRuns)
        code_from[i / kRuns] = p.qweight + static_cast<int64_t>(rows.weight_row(i, g)) * (p.k / 2) + 16 * c;
#pragma unroll
    for (int i = 0; i < kRuns; ++i)
        run_offset[i] = static_cast<uint32_t>(rows.weight_row(i, 0) - rows.out0) * static_cast<uint32_t>(p.k / 2);
    const int scale_group = lane / (kRows / 8);
    const uint16_t* scale_from =
        p.wscale + static_cast<int64_t>(scale_group) * p.n + rows.weight_row(lane % (kRows / 8), 0);
    uint32_t code_to = ring_at + row_offset<4>(g, c), scale_to = ring_at + S::kCodeBytes + lane * 16;
    ptx::keep(scale_from), ptx::keep(code_to), ptx::keep(scale_to);
    const auto stage_of = [](uint32_t pair) { return pair / S::kWarps % S::kStages * S::kStageBytes; };
    const auto load_step = [&](uint32_t pair) {
        const uint32_t stage = stage_of(pair);
        if (pair < pairs) {
            const bool whole = 2 * pair + 1 < groups;  // else the second group is past K
#pragma unroll
            for (int i = 0; i < kTiles * 2; ++i)
                ptx::cp_async_16(code_to + stage + i * 512,
                                 code_from[i / kRuns] + static_cast<uint64_t>(pair) * 64u + run_offset[i % kRuns],
                                 whole || c < 2);
            if (lane < kRows / 4)
                ptx::cp_async_16(scale_to + stage, scale_from + static_cast<uint64_t>(pair) * (2u * p.n),
                                 whole || scale_group == 0);
        } else if (pair < pairs + S::kWarps) {  // the first past K: for the low-rank branch
            uint32_t at = lane;
            ptx::keep(at);  // else these addresses are made outside of the loop and take registers there
            if (at < kRows / 4)
                ptx::cp_async_16(scale_to + stage, p.wscale2 + rows.weight_row(at / 2, at % 2 * 4), true);
#pragma unroll
            for (int i = 0; i < kTiles && warp < r_steps; ++i) {
                const int64_t row = rows.weight_row(2 * i + at / 16, at / 2 % 8);
                ptx::cp_async_16(scale_to - S::kCodeBytes + stage + i * 512,
                                 p.lora_up + row * p.r + 16 * warp + 8 * (at % 2), true);
            }
        }
        ptx::cp_async_commit();  // also an empty group: wait counts groups
    };
    if (threadIdx.x < kRows / 8) {
        const uint32_t to = ptx::smem_addr(smem) + S::kBias + threadIdx.x * 16;
        ptx::cp_async_16(to, p.bias + rows.weight_row(threadIdx.x, 0), true);
    }
#pragma unroll 1
    for (uint32_t step = 0; step < S::kStages; ++step) load_step(warp + step * S::kWarps);

    // ---- K ------------------------------------------------------------------------------------------------
    float acc[kTiles][kNt][4] = {};
    uint32_t x_at[kNt];  // shared address of this lane's token and c, in half a group 0
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
        x_at[nt] = ptx::smem_addr(smem) + S::kX + (min(8 * nt + g, p.m - 1) * 4 + c) * 16;
        ptx::keep(x_at[nt]);
    }
    uint32_t w_at = ring_at + row_offset<4>(lane % 16, lane / 16);  // of the second group: ^ 32
    uint32_t scale_at = ring_at + S::kCodeBytes + 2 * g;
    ptx::keep(w_at);
    const uint32_t x_stride = 64 * p.m;  // bytes from half a group to the next
    uint32_t pair = warp;
#pragma unroll 1
    for (int k0 = 0; k0 < p.k; k0 += p.chunk) {
        if (k0 > 0) __syncthreads();  // all warps are done with the last chunk
        const int elements = min(p.chunk, p.k - k0);
        const uint32_t bad = __reduce_or_sync(0xffffffffu, x_part.make(smem + S::kX, k0, elements));
        if (lane == 0) bad_tokens[warp] = k0 > 0 ? bad_tokens[warp] | bad : bad;
        __syncthreads();
        const uint32_t group0 = k0 / 64, pair_end = (group0 + elements / 64 + 1) / 2;
#pragma unroll 1
        for (; pair < pair_end; pair += S::kWarps) {
            ptx::cp_async_wait<S::kStages - 1>();
            __syncwarp();  // the copies of the other lanes
            const uint32_t stage = stage_of(pair);
            const uint32_t x_pair = (2 * pair - group0) * 2 * x_stride;
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (i == 1 && 2 * pair + 1 == groups) break;  // K is an odd number of groups
                uint32_t b[kNt][8];
#pragma unroll
                for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const uint4 v = ptx::load_shared_16(x_at[nt] + x_pair + (2 * i + h) * x_stride);
                        b[nt][4 * h] = v.x, b[nt][4 * h + 1] = v.y, b[nt][4 * h + 2] = v.z, b[nt][4 * h + 3] = v.w;
                    }
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    uint32_t w[4];
                    ptx::ldmatrix_x4(w, ((w_at + stage) ^ (32 * i)) + tile * 16 * 64);
                    float d[kNt][4] = {};
#pragma unroll
                    for (int s = 0; s < 4; ++s) {
                        const int h = s / 2, j = 2 * (s % 2);
                        const uint32_t a[4] = {s4_pair<T>(w[2 * h], j), s4_pair<T>(w[2 * h + 1], j),
                                               s4_pair<T>(w[2 * h], j + 1), s4_pair<T>(w[2 * h + 1], j + 1)};
#pragma unroll
                        for (int nt = 0; nt < kNt; ++nt)
                            ptx::mma_16bit(T(), d[nt], a, b[nt][4 * h + j], b[nt][4 * h + j + 1]);
                    }
                    const uint32_t at = scale_at + stage + (i * kRows + 16 * tile) * 2;
                    const float lo = Act16<T>::to_float(ptx::load_shared_2(at));
                    const float hi = Act16<T>::to_float(ptx::load_shared_2(at + 16));
#pragma unroll
                    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            acc[tile][nt][e] = fmaf(d[nt][e], e < 2 ? lo : hi, acc[tile][nt][e]);
                }
            }
            __syncwarp();  // all have read the stage
            load_step(pair + S::kStages * S::kWarps);
        }
    }

    // ---- low-rank branch ----------------------------------------------------------------------------------
    ptx::cp_async_wait<0>();
    __syncwarp();  // the copies of the other lanes
    const uint32_t last = ring_at + stage_of(pair);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float scale2 =
                __uint_as_float(ptx::load_shared_4(last + S::kCodeBytes + (16 * tile + 8 * h + g) * 4));
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) acc[tile][nt][2 * h] *= scale2, acc[tile][nt][2 * h + 1] *= scale2;
        }
    ptx::wait_for_previous();  // t
#pragma unroll 1
    for (int r_step = warp; r_step < r_steps; r_step += S::kWarps) {
        // A lane's words are elements 4c..4c+3 of rows g and g + 8 of lora_up; t is read in the same order. Not
        // through the read-only cache: lora_down may have run beside this kernel.
        uint2 t[kNt];
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)
            t[nt] = __ldcg(reinterpret_cast<const uint2*>(p.t + static_cast<int64_t>(min(8 * nt + g, p.m - 1)) * p.r +
                                                          16 * r_step + 4 * c));
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            uint2 up[2];
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int64_t row = rows.weight_row(2 * tile + h, g);
                up[h] = r_step == warp
                            ? ptx::load_shared_8(last + (16 * tile + 8 * h + g) * 32 + c * 8)
                            : __ldcg(reinterpret_cast<const uint2*>(p.lora_up + row * p.r + 16 * r_step + 4 * c));
            }
            const uint32_t a[4] = {up[0].x, up[1].x, up[0].y, up[1].y};
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) ptx::mma_16bit(T(), acc[tile][nt], a, t[nt].x, t[nt].y);
        }
    }

    // ---- the warps' sums, then y ----------------------------------------------------------------------------
    __syncwarp();  // every lane is done with the ring
    float* const sums = reinterpret_cast<float*>(ring);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                sums[(8 * nt + 2 * c + e % 2) * S::kPitch + 16 * tile + 8 * (e / 2) + g] = acc[tile][nt][e];
    __syncthreads();
    uint32_t bad = 0;
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) bad |= bad_tokens[w];
    const uint16_t* const bias = reinterpret_cast<const uint16_t*>(smem + S::kBias);
    auto total = [&](int token, int row) {
        float v = 0.f;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w)
            v += reinterpret_cast<const float*>(smem + w * S::kRingBytes)[token * S::kPitch + row];
        return v + Act16<T>::to_float(bias[row]);
    };
    for (int i = threadIdx.x; i < p.m * rows.kOutputs; i += S::kThreads) {
        const int token = i / rows.kOutputs, j = i % rows.kOutputs;
        if (rows.out0 + j >= p.n_out) continue;
        float v = total(token, kGated ? j + kRows / 2 : j);
        activate<Exact, 1>(&v, p.function);
        if constexpr (kGated) v *= total(token, j);
        v = bad >> token & 1u ? __int_as_float(0x7fffffff) : v;
        p.y[static_cast<int64_t>(token) * p.n_out + rows.out0 + j] =
            static_cast<uint16_t>(Act16<T>::to_bits(Act16<T>::saturate(v)));
    }
}

}  // namespace svdq::gemv
