// Kernel (a) of w4a8 on sm_90a in every split of K that it takes, on the K of the models: what
// plugins/kernels/sm90/w4a8_quantize.cu chooses by. Beside each: a kernel that only reads as much and writes as much
// ("floor"), timed alike. Every split's codes and scales must equal a plain reference's bit for bit, t within bf16's
// rounding. CUDA graphs over rotating operands larger than the L2; lora_down and act_mul stay the same, so they are
// warm, unlike in bench_linear.py.
//
// usage: w4a8_quantize_splits [R, default 32] [K, default all]
// Build, in this folder: D=../../plugins/kernels/sm90; nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -I$D
//   -I../../plugins/include w4a8_quantize_splits.cu $D/w4a8_quantize.cu $D/tensor_map.cu -o w4a8_quantize_splits
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "w4a8.h"
#include "w4a8_quantize_common.cuh"

using namespace svdq::sm90;
using T = __nv_bfloat16;

#define CHECK(call)                                                             \
    do {                                                                        \
        if (const cudaError_t e_ = (call)) {                                    \
            printf("line %d: %s\n", __LINE__, cudaGetErrorString(e_)); \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

__device__ float widen(uint16_t b) { return Act16<T>::to_float(b); }

__global__ void fill(uint16_t* x, size_t n, float scale, uint32_t seed) {  // every 32nd value four times as large
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += size_t(gridDim.x) * blockDim.x) {
        uint32_t h = uint32_t(i) * 2654435761u ^ seed;
        h ^= h >> 15, h *= 0x2c1b3c6du, h ^= h >> 12, h *= 0x297a2d39u, h ^= h >> 15;
        const float v = (float(h & 0xffff) - 32768.0f) / 32768.0f * scale * ((h >> 20 & 31) ? 1.0f : 4.0f);
        x[i] = uint16_t(Act16<T>::pack(v, v));
    }
}

// One block per row; codes in the order of w4a8_layout.h.
__global__ void reference(const uint16_t* x, const uint16_t* mul, const uint16_t* down, int k, int r, uint8_t* codes,
                          float* scales, float* t) {
    __shared__ uint32_t top;
    const uint16_t* row = x + size_t(blockIdx.x) * size_t(k);
    const int padded = (k + 127) / 128 * 128;
    const auto xh = [&](int i) { return uint16_t(Act16<T>::pack(widen(row[i]) * widen(mul[i]), 0.0f)); };
    if (threadIdx.x == 0) top = 0;
    __syncthreads();
    for (int i = int(threadIdx.x); i < k; i += int(blockDim.x)) atomicMax(&top, uint32_t(xh(i)) & 0x7fffu);
    __syncthreads();
    const RowScale s = row_scale<T>(top);
    if (threadIdx.x == 0) scales[blockIdx.x] = s.stored;
    for (int i = int(threadIdx.x); i < padded; i += int(blockDim.x)) {
        const int at = i / 128 * 128 + 32 * (i % 32 / 8) + 16 * (i % 2) + 4 * (i % 128 / 32) + i % 8 / 2;
        const int code = i < k ? __float2int_rn(__fmul_rn(widen(xh(i)), s.inverse)) : 0;
        codes[size_t(blockIdx.x) * size_t(padded) + size_t(at)] = uint8_t(code);
    }
    for (int rank = int(threadIdx.x) / 32; rank < r; rank += int(blockDim.x) / 32) {
        float sum = 0.0f;
        const uint16_t* weights = down + size_t(rank) * size_t(k);
        for (int i = int(threadIdx.x) % 32; i < k; i += 32) sum += widen(row[i]) * widen(weights[i]);
        for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(~0u, sum, d);
        if (threadIdx.x % 32 == 0) t[size_t(blockIdx.x) * size_t(r) + rank] = sum;
    }
}

__global__ void count_wrong(const uint8_t* codes, const uint8_t* codes0, size_t n, const float* scales,
                            const float* scales0, int m, const uint16_t* t, const float* t0, size_t nt, int* wrong) {
    const size_t first = blockIdx.x * size_t(blockDim.x) + threadIdx.x, step = size_t(gridDim.x) * blockDim.x;
    int bad = 0;
    for (size_t i = first; i < n; i += step) bad += codes[i] != codes0[i];
    for (size_t i = first; i < size_t(m); i += step) bad += scales[i] != scales0[i];
    for (size_t i = first; i < nt; i += step) bad += !(fabsf(widen(t[i]) - t0[i]) <= 0.01f * fabsf(t0[i]) + 2e-3f);
    if (bad) atomicAdd(wrong, bad);
}

__global__ void __launch_bounds__(512, 4) floor_kernel(const uint4* x, uint2* codes, size_t n) {  // n: of 16 bytes
    wait_prerequisites();
    launch_dependents();
    const size_t step = size_t(gridDim.x) * blockDim.x;
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < n; i += 4 * step) {
        uint4 v[4];
#pragma unroll
        for (int u = 0; u < 4; ++u)
            if (i + u * step < n) v[u] = __ldcs(x + i + u * step);
#pragma unroll
        for (int u = 0; u < 4; ++u)
            if (i + u * step < n) codes[i + u * step] = make_uint2(v[u].x ^ v[u].y, v[u].z ^ v[u].w);
    }
}

cudaStream_t stream;

// Median microseconds of launch(i), i in 0..sets-1.
template <typename Launch>
double time_us(Launch launch, int sets) {
    constexpr int kReplays = 9;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaEvent_t marks[kReplays + 1];
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < sets; ++i) launch(i);
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    for (auto& mark : marks) CHECK(cudaEventCreate(&mark));
    for (int i = 0; i < 2; ++i) CHECK(cudaGraphLaunch(exec, stream));
    for (int i = 0; i <= kReplays; ++i) {
        CHECK(cudaEventRecord(marks[i], stream));
        if (i < kReplays) CHECK(cudaGraphLaunch(exec, stream));
    }
    CHECK(cudaStreamSynchronize(stream));
    std::vector<float> us(kReplays);
    for (int i = 0; i < kReplays; ++i) {
        CHECK(cudaEventElapsedTime(&us[i], marks[i], marks[i + 1]));
        us[i] *= 1e3f / float(sets);
    }
    for (auto& mark : marks) CHECK(cudaEventDestroy(mark));
    CHECK(cudaGraphExecDestroy(exec));
    CHECK(cudaGraphDestroy(graph));
    std::sort(us.begin(), us.end());
    return us[kReplays / 2];
}

int main(int argc, char** argv) {
    const int r = argc > 1 ? atoi(argv[1]) : 32, only = argc > 2 ? atoi(argv[2]) : 0;
    constexpr size_t kPool = size_t(320) << 20;
    uint16_t *x, *mul, *down;
    uint8_t *pool, *codes0;
    float *scales0, *t0;
    int *wrong, sms = 0;
    CHECK(cudaStreamCreate(&stream));
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaMalloc(&x, kPool));
    CHECK(cudaMalloc(&pool, kPool));
    CHECK(cudaMalloc(&codes0, kPool / 2));
    CHECK(cudaMalloc(&scales0, 1 << 20));
    CHECK(cudaMalloc(&t0, 64 << 20));
    CHECK(cudaMalloc(&mul, 1 << 20));
    CHECK(cudaMalloc(&down, 64 << 20));
    CHECK(cudaMalloc(&wrong, sizeof(int)));
    fill<<<1024, 256, 0, stream>>>(x, kPool / 2, 2.0f, 1);
    fill<<<64, 256, 0, stream>>>(mul, 1 << 19, 1.0f, 7);
    fill<<<256, 256, 0, stream>>>(down, 32 << 20, 0.03f, 9);

    constexpr int kShapes[][2] = {{4608, 3072}, {8192, 640},  {8192, 1152},  {2048, 1280},  {8192, 2560},
                                  {8192, 4608}, {2048, 5120}, {4608, 12288}, {4608, 15360}};
    for (const auto& shape : kShapes) {
        const int m = shape[0], k = shape[1];
        if (only && k != only) continue;
        const size_t elements = size_t(m) * size_t(k);
        const W4A8Workspace ws(m, k, r);
        const int sets = int(std::max<size_t>(2, std::min<size_t>(16, kPool / std::max(2 * elements, ws.bytes))));
        const auto params = [&](int i) {
            svdq_linear_params p = {};
            p.format = SVDQ_FORMAT_W4A8, p.dtype = SVDQ_BF16;
            p.m = m, p.k = k, p.n = 128, p.r = r;
            p.x = x + size_t(i) * elements, p.act_mul = mul, p.lora_down = down;
            p.workspace = pool + size_t(i) * ws.bytes;
            return p;
        };
        const double floor_us = time_us(
            [&](int i) {
                cudaLaunchAttribute early = {};
                early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
                early.val.programmaticStreamSerializationAllowed = 1;
                cudaLaunchConfig_t config = {};
                config.gridDim = dim3(unsigned(std::min<size_t>((elements / 8 + 2047) / 2048, size_t(sms) * 4)));
                config.blockDim = dim3(512);
                config.stream = stream, config.attrs = &early, config.numAttrs = 1;
                const auto* from = reinterpret_cast<const uint4*>(x + size_t(i) * elements);
                auto* to = reinterpret_cast<uint2*>(pool + size_t(i) * ws.bytes);
                CHECK(cudaLaunchKernelEx(&config, floor_kernel, from, to, elements / 8));
            },
            sets);
        const double chosen_us = time_us([&](int i) { CHECK(launch_quantize_w4a8(params(i), stream)); }, sets);
        printf("M %d K %d R %d: floor %.1f us, chosen split %.1f us\n", m, k, r, floor_us, chosen_us);
        reference<<<m, 256, 0, stream>>>(x, mul, down, k, r, codes0, scales0, t0);
        for (const bool streaming : {false, true}) {
            for (const int tokens : {16, 32, 64}) {
                for (int ctas = 1; ctas <= 16; ++ctas) {
                    if ((tokens == 16) != streaming || (ctas > 1 && k < 256 * ctas)) continue;
                    const QuantizeSplit split = {tokens, ctas, streaming};
                    CHECK(cudaMemsetAsync(pool, 0xff, ws.bytes, stream));
                    if (launch_quantize_w4a8_split(params(0), stream, split)) {  // does not fit
                        cudaGetLastError();
                        continue;
                    }
                    CHECK(cudaStreamSynchronize(stream));
                    CHECK(cudaMemsetAsync(wrong, 0, sizeof(int), stream));
                    count_wrong<<<512, 256, 0, stream>>>(
                        pool + ws.x_q, codes0, size_t(m) * align_up(size_t(k), kBlockK),
                        reinterpret_cast<const float*>(pool + ws.x_scale), scales0, m,
                        reinterpret_cast<const uint16_t*>(pool + ws.t), t0, size_t(m) * size_t(r), wrong);
                    int wrong_here = 0;
                    CHECK(cudaMemcpyAsync(&wrong_here, wrong, sizeof(int), cudaMemcpyDeviceToHost, stream));
                    CHECK(cudaStreamSynchronize(stream));
                    const double us = time_us(
                        [&](int i) { CHECK(launch_quantize_w4a8_split(params(i), stream, split)); }, sets);
                    printf("  %7.2f us, %3.0f %% of the floor's speed: tokens %d, CTAs %d, %s%s\n", us,
                           100 * floor_us / us, tokens, ctas, streaming ? "streaming" : "one tile",
                           wrong_here ? " WRONG" : "");
                }
            }
        }
    }
}
