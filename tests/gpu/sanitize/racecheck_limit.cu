// What compute-sanitizer's racecheck makes of a ring that cp.async fills and one lane per warp releases: the least
// program with the synchronization of gemm_w4a8's z (plugins/kernels/sm90/w4a8_gemm.cuh), without its work.
//
//   nvcc -arch=sm_90a -Iplugins/kernels racecheck_limit.cu -o racecheck_limit
//   compute-sanitizer --tool racecheck [--racecheck-indirect-barrier-dependency] racecheck_limit all|one|early
//
//   all    every lane of the reader arrives at `empty` after its read
//   one    __syncwarp(), then lane 0 arrives for its warp, as the kernel does
//   early  lane 0 arrives before the others have read: a race
//
// The sums are checked: all and one must be right.
#include <cstdio>
#include <cstring>

#include "ptx/barrier.cuh"
#include "ptx/copy.cuh"

namespace {

using namespace svdq::ptx;

enum Release { kAll, kOne, kEarly };
constexpr int kSlots = 2, kSlotBytes = 256, kRounds = 16;

// Warp 0 copies 8 bytes a lane and round; warp 1 reads one byte a lane, the same for two lanes.
template <Release kRelease>
__global__ void ring(const uint8_t* from, int* sums) {
    __shared__ __align__(128) uint8_t slots[kSlots][kSlotBytes];
    __shared__ uint64_t barriers[2 * kSlots];
    const uint32_t full = smem_addr(barriers), empty = full + 8 * kSlots;
    const int lane = int(threadIdx.x) % 32;
    if (threadIdx.x == 0) {
        for (int s = 0; s < kSlots; ++s) {
            mbarrier_init(full + 8 * s, 32);
            mbarrier_init(empty + 8 * s, kRelease == kAll ? 32 : 1);
        }
        fence_mbarrier_init();
    }
    __syncthreads();
    int sum = 0;
    for (int i = 0; i < kRounds; ++i) {
        const uint32_t slot = i % kSlots, phase = i / kSlots & 1;
        if (threadIdx.x < 32) {
            mbarrier_wait(empty + 8 * slot, phase ^ 1);
            cp_async_8(smem_addr(slots[slot]) + 8 * lane, from + i * kSlotBytes + 8 * lane);
            cp_async_arrive(full + 8 * slot);
        } else {
            mbarrier_wait(full + 8 * slot, phase);
            if (kRelease == kEarly && lane == 0) mbarrier_arrive(empty + 8 * slot);
            sum += static_cast<volatile uint8_t&>(slots[slot][lane / 2]);
            if (kRelease == kOne) __syncwarp();
            if (kRelease == kAll || (kRelease == kOne && lane == 0)) mbarrier_arrive(empty + 8 * slot);
        }
    }
    if (threadIdx.x >= 32) sums[lane] = sum;
}

}  // namespace

int main(int argc, char** argv) {
    const char* mode = argc > 1 ? argv[1] : "one";
    uint8_t from[kRounds * kSlotBytes], *from_device;
    int sums[32], want[32] = {}, *sums_device;
    for (int i = 0; i < kRounds * kSlotBytes; ++i) {
        from[i] = uint8_t(i * 7 + i / 256);
        if (i % kSlotBytes < 16) want[2 * (i % kSlotBytes)] += from[i], want[2 * (i % kSlotBytes) + 1] += from[i];
    }
    const auto kernel = !strcmp(mode, "all") ? ring<kAll> : !strcmp(mode, "early") ? ring<kEarly> : ring<kOne>;
    if (cudaMalloc(&from_device, sizeof from) || cudaMalloc(&sums_device, sizeof sums) ||
        cudaMemcpy(from_device, from, sizeof from, cudaMemcpyHostToDevice))
        return 2;
    kernel<<<1, 64>>>(from_device, sums_device);
    if (cudaMemcpy(sums, sums_device, sizeof sums, cudaMemcpyDeviceToHost)) return 2;
    const bool right = memcmp(sums, want, sizeof want) == 0;
    std::printf("%s: sums %s\n", mode, right ? "right" : "wrong");
    return right || !strcmp(mode, "early") ? 0 : 1;
}
