// How near does the int4 gemm come to its own MMA-and-rescale stream with everything in registers?
//
//   roof    sums, B and its scales in registers: per 16 x 8 x 64 of the product one m16n8k64 (s4), then 4
//           subtractions, 4 products of scales and 4 multiply-adds; tiles, warps and CTAs per SM as in the kernel
//   kernel  plugins/kernels/portable/gemm.cuh on the FLUX.1 shapes, without quantize; R = 32 and R = 0
//
// Hopper has no s4 MMA, so by default both put two m16n8k32 (s8) on the same registers in its place: the sums
// mean nothing, the stream is the same. With -DNATIVE_S4 (sm_80, sm_86, sm_89) the instruction itself.
// Build: nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Iplugins -Iplugins/include
//        benchmarks/micro/s4_rescale_roof.cu -o s4_rescale_roof
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/portable/format_int4.cuh"
#include "kernels/portable/gemm.cuh"

namespace {

using namespace svdq;
using namespace svdq::portable;
using T = __nv_bfloat16;

struct S8InPlaceOfS4 {
    static constexpr int kMinCtas = 2;  // as where the s4 MMA exists
    static __device__ __forceinline__ void mma(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
        ptx::mma_s8_s8(d, a, b0, b1);
        ptx::mma_s8_s8(d, a, b0, b1);
    }
};
#ifdef NATIVE_S4
using Codes = S4S4;
#else
using Codes = S8InPlaceOfS4;
#endif

#define CUDA_OK(call) \
    do { \
        const cudaError_t e_ = (call); \
        if (e_ != cudaSuccess) { \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_)); \
            std::exit(2); \
        } \
    } while (0)

constexpr int kMt = LargestTile::kMt, kNt = LargestTile::kNt;

// `steps` groups of 64 on one warp tile; `out` only keeps the sums alive.
__global__ void __launch_bounds__(LargestTile::kThreads, 2) roof_kernel(int steps, float* out) {
    constexpr float kMagic = 12582912.f;
    uint32_t b[kNt][2];
    float w_scale[kNt][2], acc[kMt][kNt][4] = {};
    __shared__ float2 scales[kMt][LargestTile::kThreads];
    __shared__ __align__(128) uint32_t codes[kMt][LargestTile::kThreads / 32][32 * 4];
    for (int i = 0; i < kMt * 4; ++i)
        codes[i / 4][threadIdx.x / 32][i % 4 * 32 + threadIdx.x % 32] = threadIdx.x * 2654435761u + i * 40503u;
    for (int i = 0; i < kNt * 2; ++i) b[i / 2][i % 2] = threadIdx.x * 2246822519u + i * 3266489917u;
    for (int i = 0; i < kMt; ++i) scales[i][threadIdx.x] = make_float2(1.f + threadIdx.x * 1e-3f, 1.5f + i);
    for (int i = 0; i < kNt * 2; ++i) w_scale[i / 2][i % 2] = 1.f + threadIdx.x * 1e-4f + i;
    constexpr uint32_t kScalesPitch = sizeof scales[0], kCodesPitch = sizeof codes[0];
    const uint32_t scales_at = ptx::smem_addr(&scales[0][threadIdx.x]);
    const uint32_t codes_at = ptx::smem_addr(codes[0][threadIdx.x / 32]) + threadIdx.x % 32 * 16;
    __syncthreads();
#pragma unroll 1
    for (int step = 0; step < steps; ++step) {
#pragma unroll
        for (int mt = 0; mt < kMt; ++mt) {
            // Two loads per 4 MMAs: of constants the compiler would make MMAs and products of scales once.
            uint32_t a[4];
            ptx::ldmatrix_x4(a, codes_at + mt * kCodesPitch);
            const uint2 rows = ptx::load_shared_8(scales_at + mt * kScalesPitch);
            const float x_scale[2] = {__uint_as_float(rows.x), __uint_as_float(rows.y)};
#pragma unroll
            for (int nt = 0; nt < kNt; ++nt) {
                const int start = __float_as_int(kMagic);
                int d[4] = {start, start, start, start};
                Codes::mma(d, a, b[nt][0], b[nt][1]);
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    acc[mt][nt][i] =
                        fmaf(__int_as_float(d[i]) - kMagic, x_scale[i / 2] * w_scale[nt][i % 2], acc[mt][nt][i]);
            }
        }
    }
    float sum = 0.f;
    for (int i = 0; i < kMt * kNt * 4; ++i) sum += (&acc[0][0][0])[i];
    if (sum == 12345.678f) *out = sum;
}

__global__ void fill(uint32_t* p, size_t words, uint32_t mask, uint32_t bits) {
    for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < words; i += size_t(gridDim.x) * blockDim.x) {
        uint32_t v = static_cast<uint32_t>(i) * 2654435761u;
        v ^= v >> 15, v *= 2246822519u, v ^= v >> 13;
        p[i] = (v & mask) | bits;
    }
}

void* buffer(size_t bytes, uint32_t mask, uint32_t bits) {
    void* p = nullptr;
    CUDA_OK(cudaMalloc(&p, bytes));
    fill<<<512, 256>>>(static_cast<uint32_t*>(p), bytes / 4, mask, bits);
    CUDA_OK(cudaGetLastError());
    return p;
}

// Median of 15 timings, in seconds per run.
template <class Run>
double seconds(Run run, int repeats) {
    cudaEvent_t begin, end;
    CUDA_OK(cudaEventCreate(&begin));
    CUDA_OK(cudaEventCreate(&end));
    std::vector<float> ms(15);
    run();
    for (float& t : ms) {
        CUDA_OK(cudaEventRecord(begin));
        for (int i = 0; i < repeats; ++i) run();
        CUDA_OK(cudaEventRecord(end));
        CUDA_OK(cudaEventSynchronize(end));
        CUDA_OK(cudaEventElapsedTime(&t, begin, end));
    }
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2] * 1e-3 / repeats;
}

double kernel_seconds(int m, int n, int k, int r) {
    LinearArgs args;
    args.p = {};
    args.p.format = SVDQ_FORMAT_INT4, args.p.dtype = SVDQ_BF16;
    args.p.m = m, args.p.n = n, args.p.k = k, args.p.r = r;
    args.ws = workspace<SVDQ_FORMAT_INT4>(m, n, k, r);
    constexpr uint32_t kAny = ~0u, kSmall = 0x007f007fu, kScale = 0x3b003b00u;  // bf16 from 2^-9 up
    const size_t mm = m, nn = n, kk = k, rr = r;
    std::vector<void*> held = {buffer(args.ws.bytes, kSmall, kScale),
                               buffer(nn * kk / 2, kAny, 0),
                               buffer(kk / 64 * nn * 2, kSmall, kScale),
                               buffer(nn * rr * 2 + 16, kSmall, kScale),
                               buffer(nn * 2, kSmall, kScale),
                               buffer(nn * 4, 0, 0x3f800000u),
                               buffer(mm * nn * 2, 0, 0)};
    fill<<<512, 256>>>(static_cast<uint32_t*>(held[0]), mm * kk / 8, kAny, 0);  // the codes
    args.p.workspace = held[0], args.p.qweight = held[1], args.p.wscale = held[2], args.p.lora_up = held[3];
    args.p.bias = held[4], args.p.wscale2 = held[5], args.p.y = held[6];
    const double s = seconds([&] { CUDA_OK((launch_gemm<Int4<T, Codes>, T>(args, nullptr))); }, 10);
    CUDA_OK(cudaDeviceSynchronize());
    for (void* p : held) CUDA_OK(cudaFree(p));
    return s;
}

}  // namespace

int main() {
    struct Shape {
        const char* name;
        int m, k, n;
    };
    constexpr Shape kFlux[] = {{"flux_qkv", 4608, 3072, 9216},        {"flux_out", 4608, 3072, 3072},
                               {"flux_fc1", 4608, 3072, 12288},       {"flux_fc2", 4608, 12288, 3072},
                               {"flux_single_in", 4608, 3072, 21504}, {"flux_single_out", 4608, 15360, 3072}};
    cudaDeviceProp device;
    CUDA_OK(cudaGetDeviceProperties(&device, 0));
    float* out;
    CUDA_OK(cudaMalloc(&out, 4));
    const int ctas = 2 * device.multiProcessorCount, steps = 20000;
    const double mmas = double(ctas) * (LargestTile::kThreads / 32) * steps * kMt * kNt;
    const auto roof = [&] {
        const double s = seconds([&] { roof_kernel<<<ctas, LargestTile::kThreads>>>(steps, out); }, 1);
        CUDA_OK(cudaGetLastError());
        return mmas / s;  // of 16 x 8 x 64
    };
    std::printf("%s\n%-16s %9s %9s %9s %7s %7s\n", device.name, "", "roof TOPS", "us", "us, R=0", "share", "R = 0");
    for (const Shape& s : kFlux) {
        const double before = roof();
        const double with = kernel_seconds(s.m, s.n, s.k, 32), without = kernel_seconds(s.m, s.n, s.k, 0);
        const double rate = (before + roof()) / 2;  // the clock moves: before and after
        const double ideal = double(s.m) / 16 * (double(s.n) / 8) * (double(s.k) / 64) / rate;
        std::printf("%-16s %9.0f %9.1f %9.1f %6.1f%% %6.1f%%\n", s.name, rate * 2 * 16 * 8 * 64 * 1e-12, with * 1e6,
                    without * 1e6, 100 * ideal / with, 100 * ideal / without);
    }
    return 0;
}
