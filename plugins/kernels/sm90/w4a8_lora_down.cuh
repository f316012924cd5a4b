// lora_down_kernel (sm_90a): t = x . lora_down^T, where quantize does not make it on the way: ranks above 32, short K
//
//              K ->  CTA 0          CTA 1         ...   CTA C-1        of a cluster
//             +---------------+---------------+--   --+--------------+
//   kRows     |  64 a step    |               |       |              |
//             +---------------+---------------+--   --+--------------+
//
//   warps 0..7   two warpgroups, each half of the rows; wgmma m64 x kRanks x k16 from the ring
//   warp 8       loads
//   Then every CTA leaves its sums in shared memory, where the ring was, and adds up all C of them for its share of the
//   rows.
//
// Operands:
//   x          [M, K]  act dtype   TMA, kRows x 64, 128B swizzle; rows beyond M and columns beyond K are zero
//   lora_down  [R, K]  act dtype   TMA, kRanks x 64, 128B swizzle; ranks beyond R are zero
//   t          [M, R]  act dtype   kRanks of R per pass (grid z)
// Numerics: fp32, K ascending inside a CTA's part, then parts in CTA order; rounded once. A row with NaN or Inf in x
//   spoils its own t only.
// The next kernel may start beside this one (w4a8_quantize_rows.cuh), so it is let go only after the wait for the one
// before.
#pragma once

#include "../common/types.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/ld_st.cuh"
#include "../ptx/tma.cuh"
#include "../ptx/wgmma.cuh"

namespace svdq::sm90 {

struct LoraDownArgs {
    CUtensorMap x, lora_down;
    uint16_t* t;  // [M, R] act dtype
    int m, k, r;
};

constexpr int kLoraDownThreads = 288;
constexpr int kLoraStep = 64;    // columns per stage: rows of 128 bytes
constexpr int kMaxLoraCtas = 8;  // a cluster of portable size

template <int kRanks, int kTiles>
struct LoraDownSmem {
    static constexpr int kRows = 128 * kTiles;
    static constexpr int kXBytes = kRows * kLoraStep * 2;
    static constexpr int kStage = kXBytes + kRanks * kLoraStep * 2;
    static constexpr int kStages = kTiles == 2 ? 4 : 96 * 1024 / kStage;
    static constexpr int kRowFloats = kRanks + 4;                  // of the sums; 4 more: no bank conflicts
    static constexpr int kBytes = 1024 + kStages * (kStage + 16);  // 1024: alignment; two barriers a stage
    static_assert(kRows * kRowFloats * 4 <= kStages * kStage, "the sums lie where the stages were");
};

template <class T, int kRanks, int kTiles>
__global__ void __launch_bounds__(kLoraDownThreads, kTiles == 1 ? 2 : 1)
    lora_down_kernel(const __grid_constant__ LoraDownArgs p) {
    using S = LoraDownSmem<kRanks, kTiles>;
    extern __shared__ uint8_t smem_raw[];
    const uint32_t ring = (ptx::smem_addr(smem_raw) + 1023u) & ~1023u;
    const uint32_t full = ring + S::kStages * S::kStage, empty = full + 8 * S::kStages;
    const int warp = static_cast<int>(threadIdx.x) / 32, warpgroup = warp / 4;
    const int cta = static_cast<int>(blockIdx.x), ctas = static_cast<int>(gridDim.x);  // the cluster spans the grid's x
    const int row = static_cast<int>(blockIdx.y) * S::kRows, rank = static_cast<int>(blockIdx.z) * kRanks;
    const int steps = (p.k + kLoraStep - 1) / kLoraStep, share = (steps + ctas - 1) / ctas;
    const int first = cta * share, count = max(0, min(share, steps - first));

    if (threadIdx.x == 0) {
        for (int s = 0; s < S::kStages; ++s) ptx::mbarrier_init(full + 8 * s, 1), ptx::mbarrier_init(empty + 8 * s, 8);
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
    ptx::wait_for_previous();
    ptx::launch_dependents();

    float acc[kTiles][kRanks / 2];
#pragma unroll
    for (int i = 0; i < kTiles * kRanks / 2; ++i) acc[i / (kRanks / 2)][i % (kRanks / 2)] = 0.f;
    if (warp == 8) {  // ---- loads ----
        if (threadIdx.x % 32 == 0) {
            for (int i = 0; i < count; ++i) {
                const uint32_t s = static_cast<uint32_t>(i) % S::kStages, at = ring + s * S::kStage;
                if (i >= S::kStages) ptx::mbarrier_wait(empty + 8 * s, (static_cast<uint32_t>(i) / S::kStages + 1) & 1);
                ptx::mbarrier_arrive_expect(full + 8 * s, S::kStage);
                ptx::tma_load_2d(at, &p.x, (first + i) * kLoraStep, row, full + 8 * s);
                ptx::tma_load_2d(at + S::kXBytes, &p.lora_down, (first + i) * kLoraStep, rank, full + 8 * s);
            }
        }
        __syncwarp();
    } else {  // ---- products ----
        for (int i = 0; i < count; ++i) {
            const uint32_t s = static_cast<uint32_t>(i) % S::kStages, at = ring + s * S::kStage;
            ptx::mbarrier_wait(full + 8 * s, (static_cast<uint32_t>(i) / S::kStages) & 1);
            ptx::wgmma_fence();
#pragma unroll
            for (int q = 0; q < kLoraStep / 16; ++q) {
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    const uint64_t a =
                        ptx::wgmma_rows_128(at + static_cast<uint32_t>(kTiles * warpgroup + tile) * (64 * 128)) + 2 * q;
                    const uint64_t b = ptx::wgmma_rows_128(at + S::kXBytes) + 2 * q;
                    ptx::wgmma_16bit<T>(acc[tile], a, b);
                }
            }
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();  // the step before has been read
            if (i > 0 && threadIdx.x % 32 == 0)
                ptx::mbarrier_arrive(empty + 8 * (static_cast<uint32_t>(i - 1) % S::kStages));
        }
        ptx::wgmma_wait<0>();
    }

    __syncthreads();  // the ring is free
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, j = lane % 4;
    if (warp < 8) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
            for (int i = 0; i < kRanks / 2; i += 2) {  // d[i], d[i+1]: see wgmma.cuh
                const int r0 = 64 * (kTiles * warpgroup + tile) + 16 * (warp % 4) + g + 8 * (i / 2 % 2);
                const int c0 = 8 * (i / 4) + 2 * j;
                ptx::store_shared_8(ring + static_cast<uint32_t>(r0 * S::kRowFloats + c0) * 4, acc[tile][i],
                                    acc[tile][i + 1]);
            }
        }
    }
    __syncwarp();
    ptx::cluster_arrive();
    ptx::cluster_wait();
    constexpr int kQuads = kRanks / 4;  // of ranks, per row
    const int rows = (S::kRows + ctas - 1) / ctas, last = min((cta + 1) * rows, S::kRows);
    for (int e = static_cast<int>(threadIdx.x); e < rows * kQuads; e += kLoraDownThreads) {
        const int local = cta * rows + e / kQuads, column = 4 * (e % kQuads);
        if (local >= last || row + local >= p.m || rank + column >= p.r) continue;
        const uint32_t at = ring + static_cast<uint32_t>(local * S::kRowFloats + column) * 4;
        float4 sum = {0.f, 0.f, 0.f, 0.f};
        for (int c = 0; c < ctas; ++c) {
            const float4 v = ptx::load_cluster_16(ptx::cluster_addr(at, static_cast<uint32_t>(c)));
            sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
        }
        *reinterpret_cast<uint2*>(p.t + static_cast<size_t>(row + local) * static_cast<size_t>(p.r) + rank + column) =
            make_uint2(Act16<T>::to_pair(sum.x, sum.y), Act16<T>::to_pair(sum.z, sum.w));
    }
    __syncwarp();
    ptx::cluster_arrive();  // others may still be reading this CTA's sums
    ptx::cluster_wait();
}

}  // namespace svdq::sm90
