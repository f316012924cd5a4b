// lora_down_kernel (sm_90a): t = x . lora_down^T, where kernel (a) does not make it on the way: ranks above 32, short K
//
//              K ->  CTA 0          CTA 1         ...   CTA C-1        of a cluster
//             +---------------+---------------+--   --+--------------+
//   kRows     |  64 a step    |               |       |              |
//             +---------------+---------------+--   --+--------------+
//
//   warps 0..7   two warpgroups, each half of the rows; wgmma m64 x kRanks x k16 from the ring
//   warp 8       loads
//   Then every CTA leaves its sums in shared memory, where the ring was, and adds up all C of them for its share of the rows.
//
// Operands:
//   x          [M, K]  act dtype   TMA, kRows x 64, 128B swizzle; rows beyond M and columns beyond K are zero
//   lora_down  [R, K]  act dtype   TMA, kRanks x 64, 128B swizzle; ranks beyond R are zero
//   t          [M, R]  act dtype   kRanks of R per pass (grid z)
// Numerics: fp32, K ascending inside a CTA's part, then parts in CTA order; rounded once. A row with NaN or Inf in x spoils
//   its own t only.
// The next kernel may start beside this one (w4a8_quantize_rows.cuh), so it is let go only after the wait for the kernel before.
#pragma once

#include "epilogue.cuh"
#include "ptx.cuh"
#include "wgmma.cuh"

namespace svdq::sm90 {

struct LoraDownArgs {
    CUtensorMap x, lora_down;
    uint16_t* t;  // [M, R] act dtype
    int m, k, r;
};

constexpr int kLoraDownThreads = 288;
constexpr int kLoraStep = 64;     // columns per stage: rows of 128 bytes
constexpr int kMaxLoraCtas = 8;   // a cluster of portable size

template <int kRanks, int kTiles>
struct LoraDownSmem {
    static constexpr int kRows = 128 * kTiles;
    static constexpr int kXBytes = kRows * kLoraStep * 2;
    static constexpr int kStage = kXBytes + kRanks * kLoraStep * 2;
    static constexpr int kStages = kTiles == 2 ? 4 : 96 * 1024 / kStage;
    static constexpr int kRowFloats = kRanks + 4;  // of the sums; 4 more: no bank conflicts
    static constexpr int kBytes = 1024 + kStages * (kStage + 16);  // 1024: alignment; two barriers a stage
    static_assert(kRows * kRowFloats * 4 <= kStages * kStage, "the sums lie where the stages were");
};

template <typename T, int kRanks, int kTiles>
__global__ void __launch_bounds__(kLoraDownThreads, kTiles == 1 ? 2 : 1)
    lora_down_kernel(const __grid_constant__ LoraDownArgs p) {
    using S = LoraDownSmem<kRanks, kTiles>;
    extern __shared__ uint8_t smem_raw[];
    const uint32_t ring = (smem_u32(smem_raw) + 1023u) & ~1023u;
    const uint32_t full = ring + S::kStages * S::kStage, empty = full + 8 * S::kStages;
    const int warp = int(threadIdx.x) / 32, warpgroup = warp / 4;
    const int cta = int(blockIdx.x), ctas = int(gridDim.x);  // the cluster spans the grid's x
    const int row = int(blockIdx.y) * S::kRows, rank = int(blockIdx.z) * kRanks;
    const int steps = (p.k + kLoraStep - 1) / kLoraStep, share = (steps + ctas - 1) / ctas;
    const int first = cta * share, count = max(0, min(share, steps - first));

    if (threadIdx.x == 0) {
        for (int s = 0; s < S::kStages; ++s) mbar_init(full + 8 * s, 1), mbar_init(empty + 8 * s, 8);
        fence_mbar_init();
    }
    __syncthreads();
    wait_prerequisites();
    launch_dependents();

    float acc[kTiles][kRanks / 2];
#pragma unroll
    for (int i = 0; i < kTiles * kRanks / 2; ++i) acc[i / (kRanks / 2)][i % (kRanks / 2)] = 0.0f;
    if (warp == 8) {  // ---- loads ----
        if (threadIdx.x % 32 == 0) {
            for (int i = 0; i < count; ++i) {
                const uint32_t s = uint32_t(i) % S::kStages, at = ring + s * S::kStage;
                if (i >= S::kStages) mbar_wait(empty + 8 * s, (uint32_t(i) / S::kStages + 1) & 1);
                mbar_arrive_expect_tx(full + 8 * s, S::kStage);
                tma_load_2d(at, &p.x, (first + i) * kLoraStep, row, full + 8 * s);
                tma_load_2d(at + S::kXBytes, &p.lora_down, (first + i) * kLoraStep, rank, full + 8 * s);
            }
        }
        __syncwarp();
    } else {  // ---- products ----
        for (int i = 0; i < count; ++i) {
            const uint32_t s = uint32_t(i) % S::kStages, at = ring + s * S::kStage;
            mbar_wait(full + 8 * s, (uint32_t(i) / S::kStages) & 1);
            wgmma_fence();
#pragma unroll
            for (int q = 0; q < kLoraStep / 16; ++q) {
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    const uint64_t a = smem_desc(at + uint32_t(kTiles * warpgroup + tile) * (64 * 128)) + 2 * q;
                    const uint64_t b = smem_desc(at + S::kXBytes) + 2 * q;
                    wgmma_16<T>(acc[tile], a, b);
                }
            }
            wgmma_commit();
            wgmma_wait<1>();  // the step before has been read
            if (i > 0 && threadIdx.x % 32 == 0) mbar_arrive(empty + 8 * (uint32_t(i - 1) % S::kStages));
        }
        wgmma_wait<0>();
    }

    __syncthreads();  // the ring is free
    const int lane = int(threadIdx.x) % 32, g = lane / 4, j = lane % 4;
    if (warp < 8) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < kRanks / 2; i += 2) {  // d[i], d[i+1]: see wgmma.cuh
                const int r0 = 64 * (kTiles * warpgroup + tile) + 16 * (warp % 4) + g + 8 * (i / 2 % 2);
                const int c0 = 8 * (i / 4) + 2 * j;
                sts_f32x2(ring + uint32_t(r0 * S::kRowFloats + c0) * 4, acc[tile][i], acc[tile][i + 1]);
            }
        }
    }
    __syncwarp();
    cluster_arrive();
    cluster_wait();
    constexpr int kQuads = kRanks / 4;  // of ranks, per row
    const int rows = (S::kRows + ctas - 1) / ctas, last = min((cta + 1) * rows, S::kRows);
    for (int e = int(threadIdx.x); e < rows * kQuads; e += kLoraDownThreads) {
        const int local = cta * rows + e / kQuads, column = 4 * (e % kQuads);
        if (local >= last || row + local >= p.m || rank + column >= p.r) continue;
        const uint32_t at = ring + uint32_t(local * S::kRowFloats + column) * 4;
        float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int c = 0; c < ctas; ++c) {
            const float4 v = ld_dsmem_f32x4(dsmem_addr(at, uint32_t(c)));
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        *reinterpret_cast<uint2*>(p.t + size_t(row + local) * size_t(p.r) + rank + column) =
            make_uint2(Act16<T>::pack_wide(sum.x, sum.y), Act16<T>::pack_wide(sum.z, sum.w));
    }
    __syncwarp();
    cluster_arrive();  // others may still be reading this CTA's sums
    cluster_wait();
}

}  // namespace svdq::sm90
