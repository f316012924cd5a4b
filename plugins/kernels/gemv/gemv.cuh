// Kernel (b) for few tokens: y[M, N] = act( x^ . Q(W)^T + t.lora_up^T + bias ), M <= 16. Bound by the read of W.
//
// Grid: one CTA per kRows = 16 kTiles rows of W, over all of K. Its warps take K in pairs of groups (128
// elements), warp w pairs w, w + kWarps, ...; each has a ring of kStages such steps, filled by cp.async, and
// waits for nobody else until the end.
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
//   chunks. x^ is made here from x, so that no kernel has to run before this one; only t comes from kernel
//   (a), and it is waited for after the whole of K.
//
// Numerics: a group of 64 is summed into a fresh fp32 accumulator and multiplied by its scale; fp32 across a
// warp's groups in ascending order; times wscale2; low-rank into the same sums (warp w: k16 steps w, w +
// kWarps, ...); then the warps' sums in warp order; bias; activation; one rounding. A token with NaN or Inf
// in x becomes NaN.
#pragma once

#include "../common/activation.cuh"
#include "../common/octet.cuh"
#include "../common/ptx.cuh"
#include "../common/s4.cuh"
#include "../sm80/tile.cuh"  // row_offset()

namespace svdq::gemv {

struct GemvArgs {
    const uint16_t* x;        // [M, K] act dtype
    const uint16_t* act_mul;  // [K]
    const uint8_t* qweight;   // [N, K/2]
    const uint16_t* wscale;   // [K/64, N]
    const uint16_t* t;        // [M, R], written by kernel (a)
    const uint16_t* lora_up;  // [N, R]
    const uint16_t* bias;     // [N]
    const float* wscale2;     // [N]
    uint16_t* y;              // [M, n_out]
    int m, n, k, r, n_out;
    int activation;
    float shift;
    int chunk;  // elements of K whose x^ is in shared memory at a time: a multiple of 128 kWarps, or all
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
    static_assert((kStages & (kStages - 1)) == 0, "a power of two: the stage is taken from the step at each step");
    static_assert(kX % 16 == 0 && kStageBytes % 16 == 0, "16-byte copies");
};

// Row j of a CTA's tile -> row of qweight, wscale, lora_up, bias. For GEGLU (kPaired) the first half of the tile
// is "value", the second "gate". Aligned runs of 8 stay runs of 8; runs past the end are the last run again,
// and are not stored.
template <int kRows, bool kPaired>
struct Rows {
    static constexpr int kOutputs = kPaired ? kRows / 2 : kRows;
    int out0, last, half;  // half: from a value's row to its gate's

    __device__ __forceinline__ explicit Rows(const GemvArgs& p)
        : out0(static_cast<int>(blockIdx.x) * kOutputs), last(min(kOutputs, p.n_out - out0) - 8), half(p.n_out) {}

    // Row 8 run + r.
    __device__ __forceinline__ int weight_row(int run, int r) const {
        const bool gate = 8 * run >= kOutputs;
        return out0 + min(8 * run - (gate ? kOutputs : 0), last) + r + (gate ? half : 0);
    }
};

// x^ of elements [k0, k0 + elements) of every token into `to`, as B wants it: 16-byte units
//   [group][half of the group][token][c],  unit = elements 8c..8c+7 of the half, paired up.
// Returns a bit per token that had a NaN or Inf here.
template <class T, int kThreads, bool kShift>
__device__ __forceinline__ uint32_t prepare_x(const GemvArgs& p, uint8_t* to, int k0, int elements) {
    static_assert((kThreads & (kThreads - 1)) == 0, "a power of two");
    const int side = p.m > 1 ? kThreads / 2 : kThreads;  // threads along K
    const int stride = 64 * p.m;                         // bytes from one half of a group to the next
    uint32_t bad = 0;
    for (int token = threadIdx.x / side; token < p.m; token += kThreads / side) {
        const uint16_t* const x = p.x + static_cast<int64_t>(token) * p.k + k0;
        bool finite = true;
#pragma unroll 2
        for (int o = threadIdx.x & (side - 1); o < elements / 8; o += side) {
            Octet v = load_octet(x + 8 * o, true);
            const Octet mul = load_octet(p.act_mul + k0 + 8 * o, true);
            finite = finite && max_halves(max_bits(0, v)) < TypeTraits<T>::kInfBits;
            smooth<T>(v, mul, kShift ? p.shift : 0.f);
            const Octet pairs = pair_up(v);
            *reinterpret_cast<uint4*>(to + o / 4 * stride + token * 64 + o % 4 * 16) =
                make_uint4(pairs.pair[0], pairs.pair[1], pairs.pair[2], pairs.pair[3]);
        }
        bad |= finite ? 0u : 1u << token;
    }
    return bad;
}

template <class T, class S, bool kPaired>
__global__ void __launch_bounds__(S::kThreads, ptx::min_ctas(S::kMinCtas)) gemv_kernel(const GemvArgs p) {
    SVDQ_DYNAMIC_SHARED(smem);
    __shared__ uint32_t bad_tokens[S::kWarps];
    constexpr int kTiles = S::kTiles, kNt = S::kNt, kRows = S::kRows;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int g = lane / 4, c = lane % 4;
    const Rows<kRows, kPaired> rows(p);
    const uint32_t groups = static_cast<uint32_t>(p.k) / 64, pairs = (groups + 1) / 2;
    uint8_t* const ring = smem + warp * S::kRingBytes;
    const uint32_t ring_at = ptx::smem_addr(ring);

    // A lane copies 16-byte chunk c of rows g, g + 8, ... of a step: two chunks a group. And, lanes below kRows /
    // 4, the scales of 8 rows.
    constexpr int kRuns = kPaired ? kTiles : 2 * kTiles;  // of 8 rows; gates lie as values do
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
    uint32_t code_to = ring_at + sm80::row_offset<4>(g, c), scale_to = ring_at + S::kCodeBytes + lane * 16;
    ptx::keep(scale_from), ptx::keep(code_to), ptx::keep(scale_to);
    auto load_step = [&](uint32_t step) {
        const uint32_t pair = warp + step * S::kWarps, stage = step % S::kStages * S::kStageBytes;
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
        }
        ptx::cp_async_commit();  // also an empty group: wait counts groups
    };
    if (threadIdx.x < kRows / 8) {
        const uint32_t to = ptx::smem_addr(smem) + S::kBias + threadIdx.x * 16;
        ptx::cp_async_16(to, p.bias + rows.weight_row(threadIdx.x, 0), true);
    }
#pragma unroll
    for (uint32_t step = 0; step < S::kStages - 1; ++step) load_step(step);

    // Wanted at the end, asked for now: second scales, and the rows of lora_up for this warp's first k16 step.
    // A lane's words are elements 4c..4c+3 of rows g and g + 8; t is read in the same order.
    const int r_steps = p.r / 16;
    float scale2[kTiles][2];
    uint2 up[kTiles][2];
    auto load_up = [&](int r_step) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const int64_t row = rows.weight_row(2 * tile + h, g);
                up[tile][h] = make_uint2(0, 0);
                if (r_step < r_steps)
                    up[tile][h] =
                        __ldg(reinterpret_cast<const uint2*>(p.lora_up + row * p.r + 16 * r_step + 4 * c));
            }
    };
    auto load_scale2 = [&] {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int h = 0; h < 2; ++h) scale2[tile][h] = __ldg(p.wscale2 + rows.weight_row(2 * tile + h, g));
    };
    constexpr bool kEarlyScale2 = kTiles * S::kWarps < 24;  // else registers are short
    if constexpr (kEarlyScale2) load_scale2();
    constexpr bool kEarlyUp = kTiles == 1 || kTiles * S::kWarps == 8;  // else registers are short
    if constexpr (kEarlyUp) load_up(warp);

    // ---- K ------------------------------------------------------------------------------------------------
    float acc[kTiles][kNt][4] = {};
    uint32_t x_at[kNt];  // shared address of this lane's token and c, in half a group 0
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) {
        x_at[nt] = ptx::smem_addr(smem) + S::kX + (min(8 * nt + g, p.m - 1) * 4 + c) * 16;
        ptx::keep(x_at[nt]);
    }
    uint32_t w_at[2] = {ring_at + sm80::row_offset<4>(lane % 16, lane / 16),
                        ring_at + sm80::row_offset<4>(lane % 16, 2 + lane / 16)};
    uint32_t scale_at = ring_at + S::kCodeBytes + 2 * g;
    ptx::keep(w_at[0]), ptx::keep(w_at[1]), ptx::keep(scale_at);
    const uint32_t x_stride = 64 * p.m;  // bytes from half a group to the next
    uint32_t bad = 0, step = 0;
#pragma unroll 1
    for (int k0 = 0; k0 < p.k; k0 += p.chunk) {
        if (k0 > 0) __syncthreads();  // all warps are done with the last chunk
        const int elements = min(p.chunk, p.k - k0);
        bad |= p.shift == 0.f ? prepare_x<T, S::kThreads, false>(p, smem + S::kX, k0, elements)
                              : prepare_x<T, S::kThreads, true>(p, smem + S::kX, k0, elements);
        __syncthreads();
        const uint32_t group0 = k0 / 64, pair_end = (group0 + elements / 64 + 1) / 2;
#pragma unroll 1
        for (uint32_t pair = warp + step * S::kWarps; pair < pair_end; pair += S::kWarps, ++step) {
            ptx::cp_async_wait<S::kStages - 2>();
            __syncwarp();  // the copies of the other lanes; and all have read the stage that is refilled
            load_step(step + S::kStages - 1);
            const uint32_t stage = step % S::kStages * S::kStageBytes;
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
                    ptx::ldmatrix_x4(w, w_at[i] + stage + tile * 16 * 64);
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
                    const float lo = TypeTraits<T>::to_float(ptx::load_shared_2(at));
                    const float hi = TypeTraits<T>::to_float(ptx::load_shared_2(at + 16));
#pragma unroll
                    for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            acc[tile][nt][e] = fmaf(d[nt][e], e < 2 ? lo : hi, acc[tile][nt][e]);
                }
            }
        }
    }

    // ---- low-rank branch ----------------------------------------------------------------------------------
    if constexpr (!kEarlyScale2) load_scale2();
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[tile][nt][e] *= scale2[tile][e / 2];
    ptx::wait_for_previous();  // t
    for (int r_step = warp; r_step < r_steps; r_step += S::kWarps) {
        if constexpr (!kEarlyUp) load_up(r_step);
        uint2 t[kNt];
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)  // not through the read-only cache: (a) may have run beside this kernel
            t[nt] = __ldcg(reinterpret_cast<const uint2*>(
                p.t + static_cast<int64_t>(min(8 * nt + g, p.m - 1)) * p.r + 16 * r_step + 4 * c));
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            const uint32_t a[4] = {up[tile][0].x, up[tile][1].x, up[tile][0].y, up[tile][1].y};
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) ptx::mma_16bit(T(), acc[tile][nt], a, t[nt].x, t[nt].y);
        }
        if constexpr (kEarlyUp) load_up(r_step + S::kWarps);
    }

    // ---- the warps' sums, then y ----------------------------------------------------------------------------
    ptx::cp_async_wait<0>();
    __syncwarp();  // every lane is done with the ring
    float* const sums = reinterpret_cast<float*>(ring);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                sums[(8 * nt + 2 * c + e % 2) * S::kPitch + 16 * tile + 8 * (e / 2) + g] = acc[tile][nt][e];
    bad = __reduce_or_sync(0xffffffffu, bad);
    if (lane == 0) bad_tokens[warp] = bad;
    __syncthreads();
    bad = 0;
#pragma unroll
    for (int w = 0; w < S::kWarps; ++w) bad |= bad_tokens[w];
    const uint16_t* const bias = reinterpret_cast<const uint16_t*>(smem + S::kBias);
    auto total = [&](int token, int row) {
        float v = 0.f;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w)
            v += reinterpret_cast<const float*>(smem + w * S::kRingBytes)[token * S::kPitch + row];
        return v + TypeTraits<T>::to_float(bias[row]);
    };
    for (int i = threadIdx.x; i < p.m * rows.kOutputs; i += S::kThreads) {
        const int token = i / rows.kOutputs, j = i % rows.kOutputs;
        if (rows.out0 + j >= p.n_out) continue;
        float v = total(token, j);
        if constexpr (kPaired) {
            v *= gelu(total(token, j + kRows / 2));
        } else {
            switch (p.activation) {
                case SVDQ_ACT_GELU: v = gelu(v); break;
                case SVDQ_ACT_GELU_TANH: v = gelu_tanh(v); break;
                case SVDQ_ACT_SILU: v = silu(v); break;
                default: break;
            }
        }
        v = bad >> token & 1u ? __int_as_float(0x7fffffff) : v;
        p.y[static_cast<int64_t>(token) * p.n_out + rows.out0 + j] =
            static_cast<uint16_t>(TypeTraits<T>::to_bits(TypeTraits<T>::saturate(v)));
    }
}

}  // namespace svdq::gemv
