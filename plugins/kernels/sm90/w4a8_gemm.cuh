// gemm_w4a8 (sm_90a): y = act( x_scale * wscale2 * (x_q . (z q)^T) + t . lora_up^T + bias ), computed as y^T = W . X^T
//
// Persistent CTAs of 2 consumer warpgroups and 1 producer warp; a CTA's tile is 128 weight rows x BN tokens.
//
//                 tokens -> BN = 64..256
//               +------------------------+     consumer warpgroup w: 64 rows x BN tokens, wgmma m64nBNk32 s8
//   weight  64  | warpgroup 0            |       A = W, 4-bit in shared memory -> int8 in registers
//   rows        +------------------------+       B = x_q, 128-byte swizzled shared memory
//    |      64  | warpgroup 1            |     ring of stages, each 128 of K:  x_q BN x 128 B | qweight 128 x 64 B
//    v          +------------------------+
//
//   The two warpgroups release stages on their own and never meet: while one runs its epilogue the other has the
//   tensor cores, so most of the epilogue is hidden. A cluster of 2 CTAs has neighbouring rows and the same tokens;
//   each loads half of x_q and multicasts it to both.
//   Geglu: the 64 upper rows of fragments come from the first half of N, the lower ones from the second, so that
//   fragment rows g and g+8 of a thread are a pair: rows g -> 64*tile + 32w + 8*warp + g, rows g+8 -> N/2 + the same.
//   After K come ceil(R/64) tail stages through the same ring: t as BN x 64 ranks (and x_scale in the first one's
//   weight slot); s32 accumulators become fp32 in place and 16-bit wgmma adds t . lora_up^T.
//
// Operands:
//   x_q      [M, Kp] i8       w4a8_layout.h order       TMA, 128B swizzle        t   [M, R] act dtype   TMA, likewise
//   qweight  [N, K/2] bytes   row-major                 TMA, no swizzle (64-byte rows, 16-byte reads: no conflicts)
//   z        [K/64, N] i8     one byte per row and 64   global, two stages ahead
//   y        [M, N_out]       act dtype                 stmatrix.trans -> 32-token slabs -> TMA store (clips M and N)
// Numerics: exact s32 over K; then fp32; one rounding. No atomics; the order of every sum is fixed.
#pragma once

#include "epilogue.cuh"
#include "ptx.cuh"
#include "w4a8_layout.h"
#include "wgmma.cuh"

namespace svdq::sm90 {

struct GemmArgs {
    CUtensorMap x_q, qweight, t, y;
    const uint8_t* z;         // [K/64, N]
    const float* wscale2;     // [N]
    const float* x_scale;     // [M, padded to kTokenPad]
    const void* lora_up;      // [N, R] act dtype
    const void* bias;         // [N] act dtype
    int m, n, k, r;
    int activation;
    int row_units;            // tiles along N, counted in clusters
    int token_tiles;
    int cluster;              // 1 or 2
};

constexpr int kGemmThreads = 384;
constexpr int kRowsPerTile = 128;
constexpr int kWeightSlot = kRowsPerTile * kBlockK / 2;
constexpr int kSlabTokens = 32;                            // tokens per epilogue store
constexpr int kSlabBytes = kSlabTokens * 128;
constexpr int kRasterRows = 16;                            // tiles along N visited before the next token tile
constexpr int kSmemLimit = 227 * 1024;
constexpr int kGemmFixedSmem = 1024 + 4 * kSlabBytes + 256; // alignment, two slabs per warpgroup, barriers

template <int BN>
inline constexpr int kStagesThatFit = (kSmemLimit - kGemmFixedSmem) / (BN * kBlockK + kWeightSlot);
template <int BN>
inline constexpr int kGemmStages = kStagesThatFit<BN> < 8 ? kStagesThatFit<BN> : 8;
template <int BN>
inline constexpr int kGemmSmemBytes = kGemmFixedSmem + kGemmStages<BN> * (BN * kBlockK + kWeightSlot);

// 4 codes of one nibble position (in the low nibble of each byte) -> 4 int8 values q * z. `c` = expand_constant(z).
// (q + 8) * z + 128 - 8z = 128 + q z stays inside its byte for q in [-7, 7], z in 1..18.
__device__ __forceinline__ uint32_t expand(uint32_t nibbles, uint32_t z, uint32_t c) {
    return (((nibbles & 0x0f0f0f0fu) ^ 0x08080808u) * z + c) ^ 0x80808080u;
}
__device__ __forceinline__ uint32_t expand_constant(uint32_t z) { return (128u - 8u * z) * 0x01010101u; }

struct Tile {
    int row, token;           // first weight row (geglu: first output feature) of this CTA, first token
};

// Walks `kRasterRows` of row tiles for every token tile, then the next rows: the weights of a group stay in L2.
__device__ __forceinline__ Tile tile_at(const GemmArgs& p, int unit, uint32_t rank, int rows_per_tile, int bn) {
    const int group_rows = kRasterRows / p.cluster;
    const int per_group = group_rows * p.token_tiles;
    const int group = unit / per_group;
    const int in_group = unit - group * per_group;
    const int first = group * group_rows;
    const int rows = min(group_rows, p.row_units - first);
    const int token = in_group / rows;
    const int row = first + in_group - token * rows;
    return {(row * p.cluster + int(rank)) * rows_per_tile, token * bn};
}

template <int BN, typename T, ActClass kAct>
__global__ void __launch_bounds__(kGemmThreads, 1) gemm_w4a8_kernel(const __grid_constant__ GemmArgs p) {
    constexpr int kStages = kGemmStages<BN>;
    constexpr int kTokenSlot = BN * kBlockK;
    constexpr bool kGeglu = kAct == ActClass::kGeglu;
    constexpr int kOutRows = kGeglu ? kRowsPerTile / 2 : kRowsPerTile;   // features of y per tile
    constexpr int kAcc = BN / 2;

    extern __shared__ uint8_t smem_raw[];
    const uint32_t smem = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const uint32_t x_sm = smem;
    const uint32_t slab_sm = x_sm + kStages * kTokenSlot;
    const uint32_t w_sm = slab_sm + 4 * kSlabBytes;
    const uint32_t full = w_sm + kStages * kWeightSlot;
    const uint32_t empty = full + 8 * kStages;

    const uint32_t cluster = uint32_t(p.cluster);
    const uint32_t rank = cluster == 1 ? 0 : cluster_cta_rank();
    const int warp = int(threadIdx.x) / 32;
    const int lane = int(threadIdx.x) % 32;

    if (threadIdx.x == 0) {
        for (int s = 0; s < kStages; ++s) {
            mbar_init(full + 8 * s, 1);
            mbar_init(empty + 8 * s, 8 * cluster);   // every consumer warp of every CTA of the cluster
        }
        fence_mbar_init();
    }
    if (cluster == 1) {
        __syncthreads();
    } else {
        cluster_arrive();
        cluster_wait();
    }
    launch_dependents();

    const int units = p.row_units * p.token_tiles;
    const int unit_step = int(gridDim.x / cluster);
    const int k_blocks = (p.k + kBlockK - 1) / kBlockK;
    const int tails = p.r > 64 ? (p.r + 63) / 64 : 1;
    uint32_t stage = 0, phase = 0;
    const auto advance = [&] {
        if (++stage == kStages) stage = 0, phase ^= 1;
    };

    if (warp >= 8) {  // ---- producer ----
        warpgroup_reg_dealloc<40>();
        if (warp == 8 && lane == 0) {
            prefetch_tensor_map(&p.x_q);
            prefetch_tensor_map(&p.qweight);
            prefetch_tensor_map(&p.t);
            wait_prerequisites();
            const int share = BN / int(cluster);     // tokens this CTA loads
            const uint32_t share_at = rank * uint32_t(share) * kBlockK;
            const auto load_tokens = [&](const CUtensorMap* map, int column, int token) {
                const uint32_t dst = x_sm + stage * kTokenSlot + share_at;
                const int row = token + int(rank) * share;
                if (cluster == 1) {
                    tma_load_2d(dst, map, column, row, full + 8 * stage);
                } else {
                    tma_load_2d_multicast(dst, map, column, row, full + 8 * stage, 3);
                }
            };
            for (int unit = int(blockIdx.x / cluster); unit < units; unit += unit_step) {
                const Tile tile = tile_at(p, unit, rank, kOutRows, BN);
                const int second = kGeglu ? p.n / 2 + tile.row : tile.row + 64;
                for (int kb = 0; kb < k_blocks; ++kb, advance()) {
                    mbar_wait(empty + 8 * stage, phase ^ 1);
                    mbar_arrive_expect_tx(full + 8 * stage, kTokenSlot + kWeightSlot);
                    const uint32_t w_dst = w_sm + stage * kWeightSlot;
                    load_tokens(&p.x_q, kb * kBlockK, tile.token);
                    tma_load_2d(w_dst, &p.qweight, kb * (kBlockK / 2), tile.row, full + 8 * stage);
                    tma_load_2d(w_dst + kWeightSlot / 2, &p.qweight, kb * (kBlockK / 2), second, full + 8 * stage);
                }
                for (int tail = 0; tail < tails; ++tail, advance()) {
                    const uint32_t scale_bytes = tail == 0 ? BN * 4 : 0;
                    mbar_wait(empty + 8 * stage, phase ^ 1);
                    mbar_arrive_expect_tx(full + 8 * stage, (p.r > 0 ? kTokenSlot : 0) + scale_bytes);
                    if (tail == 0) {
                        bulk_load(w_sm + stage * kWeightSlot, p.x_scale + tile.token, BN * 4, full + 8 * stage);
                    }
                    if (p.r > 0) load_tokens(&p.t, tail * 64, tile.token);
                }
            }
        }
    } else {  // ---- consumers ----
        warpgroup_reg_alloc<232>();
        const int wg = warp / 4, warp_in_wg = warp % 4;
        const int g = lane / 4, t = lane % 4;
        const int row0 = kGeglu ? wg * 32 + warp_in_wg * 8 + g : wg * 64 + warp_in_wg * 16 + g;  // rows in the slot
        const int row1 = kGeglu ? row0 + 64 : row0 + 8;
        const uint32_t w_rd = uint32_t(row0) * (kBlockK / 2) + uint32_t(t) * 16;
        constexpr uint32_t kRow1 = (kGeglu ? 64 : 8) * (kBlockK / 2);
        const int z_groups = p.k / 64;
        const bool elected = lane < int(cluster);    // lane c releases stages to CTA c

        const auto weight_rows = [&](int unit, int& n0, int& n1) {   // rows of W, clamped: clipped ones are not stored
            const Tile tile = tile_at(p, unit, rank, kOutRows, BN);
            n0 = min(tile.row + row0, p.n - 1);
            n1 = min(kGeglu ? p.n / 2 + tile.row + row0 : tile.row + row1, p.n - 1);
        };
        struct RowZ {
            uint32_t z0, z1;                         // of the thread's two rows; used two stages after the load
        };
        const auto load_z = [&](int n0, int n1, int kb) -> RowZ {
            const uint8_t* z = p.z + size_t(min(2 * kb + t / 2, z_groups - 1)) * size_t(p.n);
            return {__ldg(z + n0), __ldg(z + n1)};
        };
        const auto release = [&](uint32_t s) {
            if (elected) mbar_arrive_cluster(empty + 8 * s, uint32_t(lane));
        };

        int unit = int(blockIdx.x / cluster);
        int n0 = 0, n1 = 0;
        RowZ z_now = {0, 0}, z_next = {0, 0};
        if (unit < units) {
            weight_rows(unit, n0, n1);
            z_now = load_z(n0, n1, 0);
            z_next = load_z(n0, n1, 1);
        }
        for (; unit < units; unit += unit_step) {
            const Tile tile = tile_at(p, unit, rank, kOutRows, BN);
            int32_t acc[kAcc];
#pragma unroll
            for (int i = 0; i < kAcc; ++i) acc[i] = 0;
            uint32_t a[2][4];
            for (int kb = 0; kb < k_blocks; ++kb) {
                const uint32_t z0 = z_now.z0, z1 = z_now.z1;
                const uint32_t c0 = expand_constant(z0), c1 = expand_constant(z1);
                z_now = z_next;
                if (kb + 2 < k_blocks) z_next = load_z(n0, n1, kb + 2);
                mbar_wait(full + 8 * stage, phase);
                const uint32_t w_at = w_sm + stage * kWeightSlot + w_rd;
                const uint4 w0v = lds128(w_at), w1v = lds128(w_at + kRow1);
                const uint32_t w0[4] = {w0v.x, w0v.y, w0v.z, w0v.w}, w1[4] = {w1v.x, w1v.y, w1v.z, w1v.w};
                const uint64_t b = smem_desc(x_sm + stage * kTokenSlot);
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    uint32_t(&frag)[4] = a[j & 1];   // free: at most the previous wgmma is in flight
                    frag[0] = expand(w0[j], z0, c0);
                    frag[1] = expand(w1[j], z1, c1);
                    frag[2] = expand(w0[j] >> 4, z0, c0);
                    frag[3] = expand(w1[j] >> 4, z1, c1);
                    wgmma_fence();
                    Wgmma<BN>::s8(acc, frag, b + 2 * j);
                    wgmma_commit();
                    wgmma_wait<1>();
                    if (j == 0 && kb > 0) release(stage == 0 ? kStages - 1 : stage - 1);
                }
                advance();
            }

            // Everything the tail needs from global memory is requested before the last wgmma has ended.
            const float s0 = __ldg(p.wscale2 + n0), s1 = __ldg(p.wscale2 + n1);
            const T* bias = static_cast<const T*>(p.bias);
            const float b0 = Act16<T>::to_float(__ldg(reinterpret_cast<const uint16_t*>(bias) + n0));
            const float b1 = Act16<T>::to_float(__ldg(reinterpret_cast<const uint16_t*>(bias) + n1));
            const uint16_t* up0 = static_cast<const uint16_t*>(p.lora_up) + size_t(n0) * size_t(p.r) + 2 * t;
            const uint16_t* up1 = static_cast<const uint16_t*>(p.lora_up) + size_t(n1) * size_t(p.r) + 2 * t;
            const auto load_up = [&](uint32_t (&frag)[4], int first_rank) {
                frag[0] = __ldg(reinterpret_cast<const uint32_t*>(up0 + first_rank));
                frag[1] = __ldg(reinterpret_cast<const uint32_t*>(up1 + first_rank));
                frag[2] = __ldg(reinterpret_cast<const uint32_t*>(up0 + first_rank + 8));
                frag[3] = __ldg(reinterpret_cast<const uint32_t*>(up1 + first_rank + 8));
            };
            uint32_t up[2][4] = {};
            if (p.r > 0) load_up(up[0], 0);
            if (p.r > 16) load_up(up[1], 16);
            const int next = unit + unit_step;
            if (next < units) {
                weight_rows(next, n0, n1);
                z_now = load_z(n0, n1, 0);
                z_next = load_z(n0, n1, 1);
            }
            wgmma_wait<0>();
            release(stage == 0 ? kStages - 1 : stage - 1);

            // s32 -> fp32, scales, bias
            mbar_wait(full + 8 * stage, phase);
            float v[kAcc];
            const uint32_t scale_at = w_sm + stage * kWeightSlot + uint32_t(t) * 8;
#pragma unroll
            for (int j = 0; j < BN / 8; ++j) {
                const float2 xs = lds_f32x2(scale_at + 32 * j);
                v[4 * j + 0] = fmaf(float(acc[4 * j + 0]), xs.x * s0, b0);
                v[4 * j + 1] = fmaf(float(acc[4 * j + 1]), xs.y * s0, b0);
                v[4 * j + 2] = fmaf(float(acc[4 * j + 2]), xs.x * s1, b1);
                v[4 * j + 3] = fmaf(float(acc[4 * j + 3]), xs.y * s1, b1);
            }
            for (int tail = 0; tail < tails; ++tail) {
                if (tail > 0) mbar_wait(full + 8 * stage, phase);
                const uint64_t b = smem_desc(x_sm + stage * kTokenSlot);
#pragma unroll
                for (int s = 0; s < 4; ++s) {
                    if (64 * tail + 16 * s < p.r) {
                        if (tail > 0 || s > 1) load_up(up[s & 1], 64 * tail + 16 * s);
                        wgmma_fence();
                        if constexpr (sizeof(T) == 2 && Act16<T>::kInf == 0x7c00) {
                            Wgmma<BN>::f16(v, up[s & 1], b + 2 * s);
                        } else {
                            Wgmma<BN>::bf16(v, up[s & 1], b + 2 * s);
                        }
                        wgmma_commit();
                        wgmma_wait<0>();
                    }
                }
                release(stage);
                advance();
            }

            // activation, rounding, transposed store in slabs of 32 tokens
            const uint32_t my_slabs = slab_sm + uint32_t(wg) * 2 * kSlabBytes;
            const int out_row = tile.row + wg * (kOutRows / 2);
            const int mat = lane / 8, i = lane % 8;
#pragma unroll
            for (int slab = 0; slab < BN / kSlabTokens; ++slab) {
                const uint32_t buf = my_slabs + uint32_t(slab & 1) * kSlabBytes;
                if (warp_in_wg == 0 && lane == 0) bulk_wait_read<1>();   // the store two slabs ago has left `buf`
                named_barrier(1 + wg, 128);
                if constexpr (kGeglu) {
                    uint32_t out[4];
#pragma unroll
                    for (int q = 0; q < 4; ++q) {
                        const float* e = v + 16 * slab + 4 * q;
                        out[q] = Act16<T>::pack(e[0] * gelu_erf(e[2]), e[1] * gelu_erf(e[3]));
                    }
                    const int token = 8 * mat + i;
                    stmatrix_x4_trans(buf + token * 64 + ((warp_in_wg ^ (token / 2 % 4)) * 16), out[0], out[1], out[2],
                                      out[3]);
                } else {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float e[8];
#pragma unroll
                        for (int q = 0; q < 8; ++q) {
                            const float raw = v[16 * slab + 8 * half + q];
                            e[q] = kAct == ActClass::kUnary ? activate(raw, p.activation) : raw;
                        }
                        const int token = 16 * half + 8 * (mat / 2) + i;
                        const int chunk = (2 * warp_in_wg + mat % 2) ^ (token % 8);
                        stmatrix_x4_trans(buf + token * 128 + chunk * 16, Act16<T>::pack(e[0], e[1]),
                                          Act16<T>::pack(e[2], e[3]), Act16<T>::pack(e[4], e[5]),
                                          Act16<T>::pack(e[6], e[7]));
                    }
                }
                fence_proxy_async();
                named_barrier(1 + wg, 128);
                if (warp_in_wg == 0 && lane == 0) {
                    tma_store_2d(&p.y, buf, out_row, tile.token + slab * kSlabTokens);
                    bulk_commit();
                }
            }
        }
        if (warp_in_wg == 0 && lane == 0) bulk_wait<0>();
    }
    if (cluster > 1) {  // a peer may still signal this CTA's barriers
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }
}

}  // namespace svdq::sm90
