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
#include "../sm80/tile.cuh"  // row_offset(), load_a()

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
    static_assert(kX % 16 == 0 && kStageBytes % 16 == 0, "16-byte copies");
};

// Row j of a CTA's tile -> row of qweight, wscale, lora_up, bias; >= n past the end. For GEGLU the first half
// of the tile is "value", the second "gate". Aligned runs of 8 stay runs of 8.
template <int kRows>
struct Rows {
    int n, half, out0;  // half: N/2 for GEGLU, else 0

    __device__ __forceinline__ explicit Rows(const GemvArgs& p)
        : n(p.n), half(p.activation == SVDQ_ACT_GEGLU ? p.n_out : 0),
          out0(static_cast<int>(blockIdx.x) * (p.activation == SVDQ_ACT_GEGLU ? kRows / 2 : kRows)) {}

    __device__ __forceinline__ int outputs() const { return half == 0 ? kRows : kRows / 2; }
    __device__ __forceinline__ int weight_row(int j) const {
        if (half == 0) return out0 + j;
        const int column = out0 + j % (kRows / 2);
        return column >= half ? n : (j < kRows / 2 ? column : half + column);
    }
};

// x^ of elements [k0, k0 + elements) of every token into `to`, as B wants it: 16-byte units
//   [group][half of the group][token][c],  unit = elements 8c..8c+7 of the half, paired up.
// Returns a bit per token that had a NaN or Inf here.
template <class T, int kThreads>
__device__ __forceinline__ uint32_t prepare_x(const GemvArgs& p, uint8_t* to, int k0, int elements) {
    const int octets = elements / 8;
    uint32_t bad = 0;
#pragma unroll 2
    for (int i = threadIdx.x; i < p.m * octets; i += kThreads) {
        const int token = i / octets, o = i - token * octets;
        const int k = k0 + 8 * o;
        Octet v = load_octet(p.x + static_cast<int64_t>(token) * p.k + k, true);
        const Octet mul = load_octet(p.act_mul + k, true);
        if (max_halves(max_bits(0, v)) >= TypeTraits<T>::kInfBits) bad |= 1u << token;
        smooth<T>(v, mul, p.shift);
        const Octet pairs = pair_up(v);
        *reinterpret_cast<uint4*>(to + ((o / 4 * p.m + token) * 4 + o % 4) * 16) =
            make_uint4(pairs.pair[0], pairs.pair[1], pairs.pair[2], pairs.pair[3]);
    }
    return bad;
}

template <class T, class S>
__global__ void __launch_bounds__(S::kThreads, S::kMinCtas) gemv_kernel(const GemvArgs p) {
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ uint32_t bad_tokens[S::kWarps];
    constexpr int kTiles = S::kTiles, kNt = S::kNt, kRows = S::kRows;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int g = lane / 4, c = lane % 4;
    const Rows<kRows> rows(p);
    const int groups = p.k / 64, pairs = (groups + 1) / 2;
    const int steps = (pairs - warp + S::kWarps - 1) / S::kWarps;  // of this warp
    uint8_t* const ring = smem + warp * S::kRingBytes;
    const uint32_t ring_at = ptx::smem_addr(ring);

    // A lane copies 16-byte chunk lane % 4 of rows lane / 4, + 8, ... of a step: two chunks a group. And, lanes
    // below kRows / 4, the scales of 8 rows.
    const uint8_t* const code_from = p.qweight + static_cast<int64_t>(g) * (p.k / 2) + 16 * c;
    const int scale_group = lane / (kRows / 8);
    const int scale_row = rows.weight_row(lane % (kRows / 8) * 8);
    auto load_step = [&](int step) {
        if (step < steps) {
            const int pair = warp + step * S::kWarps;
            const uint32_t to = ring_at + step % S::kStages * S::kStageBytes;
            const bool in_k = 2 * pair + c / 2 < groups;
#pragma unroll
            for (int i = 0; i < kTiles * 2; ++i) {
                const int row = rows.weight_row(8 * i);  // of lane g = 0; all 8 are valid or none is
                const bool valid = row < p.n && in_k;
                const int64_t from = static_cast<int64_t>(row) * (p.k / 2) + pair * 64;
                ptx::cp_async_16(to + sm80::row_offset<4>(8 * i + g, c), code_from + (valid ? from : 0), valid);
            }
            if (lane < kRows / 4) {
                const int group = 2 * pair + scale_group;
                const bool valid = group < groups && scale_row < p.n;
                const uint16_t* from = p.wscale + static_cast<int64_t>(group) * p.n + scale_row;
                ptx::cp_async_16(to + S::kCodeBytes + lane * 16, valid ? from : p.wscale, valid);
            }
        }
        ptx::cp_async_commit();  // also an empty group: wait counts groups
    };
    if (threadIdx.x < kRows / 8) {
        const int row = rows.weight_row(8 * threadIdx.x);
        ptx::cp_async_16(ptx::smem_addr(smem) + S::kBias + threadIdx.x * 16, p.bias + (row < p.n ? row : 0), row < p.n);
    }
#pragma unroll
    for (int step = 0; step < S::kStages - 1; ++step) load_step(step);

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
                const int row = rows.weight_row(16 * tile + 8 * h + g);
                up[tile][h] = make_uint2(0, 0);
                if (r_step < r_steps && row < p.n)
                    up[tile][h] = __ldg(reinterpret_cast<const uint2*>(p.lora_up + static_cast<int64_t>(row) * p.r +
                                                                       16 * r_step + 4 * c));
            }
    };
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int row = rows.weight_row(16 * tile + 8 * h + g);
            scale2[tile][h] = row < p.n ? __ldg(p.wscale2 + row) : 0.f;
        }
    load_up(warp);

    // ---- K ------------------------------------------------------------------------------------------------
    float acc[kTiles][kNt][4] = {};
    int x_unit[kNt];  // of this lane's token and c, in units of 16 bytes
#pragma unroll
    for (int nt = 0; nt < kNt; ++nt) x_unit[nt] = min(8 * nt + g, p.m - 1) * 4 + c;
    const uint4* const x_units = reinterpret_cast<const uint4*>(smem + S::kX);
    uint32_t bad = 0;
    int step = 0;
#pragma unroll 1
    for (int k0 = 0; k0 < p.k; k0 += p.chunk) {
        if (k0 > 0) __syncthreads();  // all warps are done with the last chunk
        const int elements = min(p.chunk, p.k - k0);
        bad |= prepare_x<T, S::kThreads>(p, smem + S::kX, k0, elements);
        __syncthreads();
        const int group0 = k0 / 64, group_end = group0 + elements / 64;
#pragma unroll 1
        for (; 2 * (warp + step * S::kWarps) < group_end; ++step) {
            const int group = 2 * (warp + step * S::kWarps);
            ptx::cp_async_wait<S::kStages - 2>();
            __syncwarp();  // the copies of the other lanes; and all have read the stage that is refilled
            load_step(step + S::kStages - 1);
            const int stage = step % S::kStages * S::kStageBytes;
            const uint16_t* const scales = reinterpret_cast<const uint16_t*>(ring + stage + S::kCodeBytes);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (i == 1 && group + 1 == groups) break;  // K is an odd number of groups
                uint32_t b[kNt][8];
#pragma unroll
                for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        const uint4 v = x_units[(2 * (group + i - group0) + h) * 4 * p.m + x_unit[nt]];
                        b[nt][4 * h] = v.x, b[nt][4 * h + 1] = v.y, b[nt][4 * h + 2] = v.z, b[nt][4 * h + 3] = v.w;
                    }
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    uint32_t w[4];
                    sm80::load_a<4>(w, ring_at + stage + tile * 16 * 64, 2 * i, lane);
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
                    const float lo = TypeTraits<T>::to_float(scales[i * kRows + 16 * tile + g]);
                    const float hi = TypeTraits<T>::to_float(scales[i * kRows + 16 * tile + 8 + g]);
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
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
        for (int nt = 0; nt < kNt; ++nt)
#pragma unroll
            for (int e = 0; e < 4; ++e) acc[tile][nt][e] *= scale2[tile][e / 2];
    ptx::wait_for_previous();  // t
    for (int r_step = warp; r_step < r_steps; r_step += S::kWarps) {
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
        load_up(r_step + S::kWarps);
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
    const int outputs = rows.outputs();
    auto total = [&](int token, int row) {
        float v = 0.f;
#pragma unroll
        for (int w = 0; w < S::kWarps; ++w)
            v += reinterpret_cast<const float*>(smem + w * S::kRingBytes)[token * S::kPitch + row];
        return v + TypeTraits<T>::to_float(bias[row]);
    };
    for (int i = threadIdx.x; i < p.m * outputs; i += S::kThreads) {
        const int token = i / outputs, j = i % outputs;
        if (rows.out0 + j >= p.n_out) continue;
        float v = total(token, j);
        switch (p.activation) {
            case SVDQ_ACT_GELU: v = gelu(v); break;
            case SVDQ_ACT_GELU_TANH: v = gelu_tanh(v); break;
            case SVDQ_ACT_SILU: v = silu(v); break;
            case SVDQ_ACT_GEGLU: v *= gelu(total(token, j + kRows / 2)); break;
            default: break;
        }
        v = bad >> token & 1u ? __int_as_float(0x7fffffff) : v;
        p.y[static_cast<int64_t>(token) * p.n_out + rows.out0 + j] =
            static_cast<uint16_t>(TypeTraits<T>::to_bits(TypeTraits<T>::saturate(v)));
    }
}

}  // namespace svdq::gemv
