// How fast can one H100/H200 issue int8 wgmma when nothing else is in the way? One CTA per SM, two
// warpgroups, random data, m64n256k32 with B in 128-byte-swizzled shared memory:
//   ss      A in shared memory
//   rs      A in registers, constant
//   rs4     A in registers, expanded from 4-bit codes before every wgmma (what gemm_w4a8 does)
// Build: nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -I../../plugins/kernels/sm90
// -I../../plugins/include
#include <cstdio>

#include "w4a8_gemm.cuh"

using namespace svdq::sm90;

constexpr int kIterations = 4096, kSlots = 4, kThreads = 256;

template <int kMode>
__global__ void __launch_bounds__(kThreads, 1) roof(const uint32_t* noise, int* sink) {
    extern __shared__ uint8_t raw[];
    const uint32_t smem = (smem_u32(raw) + 1023u) & ~1023u;
    for (int i = int(threadIdx.x); i < kSlots * 10240; i += kThreads) sts_u32(smem + 4 * i, noise[i % 65536]);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads what was just written
    __syncthreads();
    int32_t acc[128];
    for (int i = 0; i < 128; ++i) acc[i] = 0;
    uint32_t a[2][4];
    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = noise[threadIdx.x * 8 + i];
    const uint32_t z = 1 + noise[threadIdx.x] % 18, c = expand_constant(z);
    for (int it = 0; it < kIterations / 4; ++it) {
        const uint32_t slot = smem + uint32_t(it % kSlots) * 40960;
        const uint4 w = lds128(slot + 32768 + threadIdx.x * 16);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (kMode == 2) {
                a[j & 1][0] = expand(words[j], z, c);
                a[j & 1][1] = expand(words[j] ^ 0x11111111u, z, c);
                a[j & 1][2] = expand(words[j] >> 4, z, c);
                a[j & 1][3] = expand((words[j] ^ 0x22222222u) >> 4, z, c);
            }
            wgmma_fence();
            if (kMode == 0) {
                WgmmaSs<256>::s8(acc, smem_desc(slot + 8192 * (threadIdx.x / 128)) + 2 * j,
                                 smem_desc(slot) + 2 * j);
            } else {
                Wgmma<256>::s8(acc, a[j & 1], smem_desc(slot) + 2 * j);
            }
            wgmma_commit();
            wgmma_wait<1>();
        }
    }
    wgmma_wait<0>();
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
