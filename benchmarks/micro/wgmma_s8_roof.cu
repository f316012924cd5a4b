// How fast can one H100/H200 issue int8 wgmma when nothing else is in the way? One CTA per SM, two
// warpgroups, random data, m64n256k32 with B in 128-byte-swizzled shared memory:
//   ss      A in shared memory
//   rs      A in registers, constant
//   rs4     A in registers, expanded from 4-bit codes before every wgmma (what gemm_w4a8 does)
// Build: nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Iplugins -Iplugins/include
//        benchmarks/micro/wgmma_s8_roof.cu -o wgmma_s8_roof
#include <cstdio>

#include "kernels/common/s4.cuh"
#include "kernels/ptx/ld_st.cuh"
#include "kernels/ptx/wgmma.cuh"

using namespace svdq;

// m64n256k32 with both operands in shared memory, which no kernel uses.
#define E8(i) \
    "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3]), "+r"(d[i + 4]), "+r"(d[i + 5]), "+r"(d[i + 6]), \
        "+r"(d[i + 7])
#define E32(i) E8(i), E8(i + 8), E8(i + 16), E8(i + 24)
#define P10(t) "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9, "
#define P110 P10(1) P10(2) P10(3) P10(4) P10(5) P10(6) P10(7) P10(8) P10(9) P10(10) P10(11)
__device__ __forceinline__ void wgmma_ss_256(int32_t (&d)[128], uint64_t a, uint64_t b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8 {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, " P110
                 "%120, %121, %122, %123, %124, %125, %126, %127}, %128, %129, 1;"
                 : E32(0), E32(32), E32(64), E32(96)
                 : "l"(a), "l"(b));
}

constexpr int kIterations = 4096, kSlots = 4, kThreads = 256;

template <int kMode>
__global__ void __launch_bounds__(kThreads, 1) roof(const uint32_t* noise, int* sink) {
    extern __shared__ uint8_t raw[];
    const uint32_t smem = (ptx::smem_addr(raw) + 1023u) & ~1023u;
    for (int i = static_cast<int>(threadIdx.x); i < kSlots * 10240; i += kThreads)
        ptx::store_shared_4(smem + 4 * i, noise[i % 65536]);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads what was just written
    __syncthreads();
    int32_t acc[128];
    for (int i = 0; i < 128; ++i) acc[i] = 0;
    uint32_t a[2][4];
    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = noise[threadIdx.x * 8 + i];
    const uint32_t z = 1 + noise[threadIdx.x] % 18, c = zq_offset<true>(z);
    for (int it = 0; it < kIterations / 4; ++it) {
        const uint32_t slot = smem + static_cast<uint32_t>(it % kSlots) * 40960;
        const uint4 w = ptx::load_shared_16(slot + 32768 + threadIdx.x * 16);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (kMode == 2) {
                a[j & 1][0] = zq_bytes(words[j], z, c);
                a[j & 1][1] = zq_bytes(words[j] ^ 0x11111111u, z, c);
                a[j & 1][2] = zq_bytes(words[j] >> 4, z, c);
                a[j & 1][3] = zq_bytes((words[j] ^ 0x22222222u) >> 4, z, c);
            }
            ptx::wgmma_fence();
            if (kMode == 0) {
                wgmma_ss_256(acc, ptx::wgmma_rows_128(slot + 8192 * (threadIdx.x / 128)) + 2 * j,
                             ptx::wgmma_rows_128(slot) + 2 * j);
            } else {
                ptx::Wgmma<256>::s8(acc, a[j & 1], ptx::wgmma_rows_128(slot) + 2 * j);
            }
            ptx::wgmma_commit();
            ptx::wgmma_wait<1>();
        }
    }
    ptx::wgmma_wait<0>();
    int sum = 0;
    for (int i = 0; i < 128; ++i) sum ^= acc[i];
    if (sum == 12345) *sink = sum;
}

template <int kMode>
void time_it(const char* name, const uint32_t* noise, int* sink, int sms) {
    const int smem = kSlots * 40960 + 1024;
    cudaFuncSetAttribute(roof<kMode>, cudaFuncAttributeMaxDynamicSharedMemorySize, smem);
    cudaEvent_t begin, end;
    cudaEventCreate(&begin), cudaEventCreate(&end);
    for (int i = 0; i < 20; ++i) roof<kMode><<<sms, kThreads, smem>>>(noise, sink);
    cudaEventRecord(begin);
    for (int i = 0; i < 50; ++i) roof<kMode><<<sms, kThreads, smem>>>(noise, sink);
    cudaEventRecord(end);
    cudaEventSynchronize(end);
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    const double ops = 50.0 * sms * 2 * kIterations * 2.0 * 64 * 256 * 32;
    printf("%-4s %7.0f TOPS   %s\n", name, ops / ms * 1e-9, cudaGetErrorString(cudaGetLastError()));
}

int main() {
    int sms = 0;
    cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0);
    uint32_t *noise = nullptr, host[65536], state = 1;
    int* sink = nullptr;
    for (uint32_t& v : host) v = state = state * 1664525u + 1013904223u ^ state >> 13;
    cudaMalloc(&noise, sizeof host), cudaMalloc(&sink, 4);
    cudaMemcpy(noise, host, sizeof host, cudaMemcpyHostToDevice);
    time_it<0>("ss", noise, sink, sms);
    time_it<1>("rs", noise, sink, sms);
    time_it<2>("rs4", noise, sink, sms);
    return 0;
}
