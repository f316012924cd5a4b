// Runs the portable CUDA kernels on a CPU, one block after another, so that their addressing, pipelines, layouts
// and numerics are tested where there is no GPU. Included by plugins/kernels/ptx/base.cuh under SVDQ_EMULATION.
//
// Blocks run in order, or backwards where EMULATION_BACKWARDS is set. Every CUDA thread of a block is a fiber; a fiber
// runs until it has to wait for others (a barrier, or an instruction of a whole warp). An asynchronous copy happens at
// the wait that its thread makes for it, no sooner, so a missing wait reads old bytes. Shared memory starts as 0xff
// bytes (NaN).
// Not modelled: time, races between warps that no barrier orders, memory caches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <stdint.h>
#include <vector_functions.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static  // one block at a time
#define __restrict__

namespace emulation {

struct Copy {
    uint32_t to;
    const void* from;
    int bytes, valid_bytes;
};

struct Thread {
    uint3 index = {};
    int id = 0;
    std::deque<std::vector<Copy>> groups;  // committed and not waited for
    std::vector<Copy> open;
};

extern Thread* self;
extern uint3 block;
extern dim3 grid;
extern uint8_t shared_memory[256 * 1024];

// Waits for all threads of the block that have not returned.
void block_barrier();

// Waits until all 32 lanes have brought `in` (words of it), then `make(all inputs, all outputs)` runs once and
// every lane gets its part of the outputs.
using Lanes = uint32_t[32][16];
void warp_collective(const uint32_t* in, int in_words, uint32_t* out, int out_words,
                     const std::function<void(const Lanes&, Lanes&)>& make);

cudaError_t run(dim3 grid, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel);

template <class V>
V shuffle(V v, const std::function<int(int)>& from) {
    static_assert(sizeof(V) == 4, "one register");
    uint32_t in, out;
    std::memcpy(&in, &v, 4);
    warp_collective(&in, 1, &out, 1, [&](const Lanes& i, Lanes& o) {
        for (int lane = 0; lane < 32; ++lane) o[lane][0] = i[from(lane)][0];
    });
    V r;
    std::memcpy(&r, &out, 4);
    return r;
}

}  // namespace emulation

#define threadIdx (emulation::self->index)
static uint3& blockIdx = emulation::block;
static dim3& gridDim = emulation::grid;

inline void __syncthreads() { emulation::block_barrier(); }
inline void __syncwarp() {
    emulation::warp_collective(nullptr, 0, nullptr, 0, [](const emulation::Lanes&, emulation::Lanes&) {});
}
template <class V>
V __shfl_xor_sync(unsigned, V v, int mask) {
    return emulation::shuffle(v, [=](int lane) { return lane ^ mask; });
}
template <class V>
V __shfl_down_sync(unsigned, V v, int by) {
    return emulation::shuffle(v, [=](int lane) { return lane + by < 32 ? lane + by : lane; });
}
inline uint32_t __reduce_or_sync(unsigned, uint32_t v);
inline bool __any_sync(unsigned, bool v) { return __reduce_or_sync(0, v) != 0; }
inline uint32_t __reduce_or_sync(unsigned, uint32_t v) {
    uint32_t out;
    emulation::warp_collective(&v, 1, &out, 1, [](const emulation::Lanes& i, emulation::Lanes& o) {
        uint32_t all = 0;
        for (int lane = 0; lane < 32; ++lane) all |= i[lane][0];
        for (int lane = 0; lane < 32; ++lane) o[lane][0] = all;
    });
    return out;
}

template <class V>
V __ldg(const V* p) {
    return *p;
}
template <class V>
V __ldcg(const V* p) {
    return *p;
}
template <class V>
void __stcg(V* p, V v) {
    *p = v;
}
inline void __threadfence() {}
inline unsigned atomicInc(unsigned* p, unsigned last) {
    const unsigned old = *p;
    *p = old >= last ? 0 : old + 1;
    return old;
}

template <class To, class From>
To emulation_cast(From v) {
    To r;
    std::memcpy(&r, &v, sizeof r);
    return r;
}
inline uint32_t __float_as_uint(float v) { return emulation_cast<uint32_t>(v); }
inline float __uint_as_float(uint32_t v) { return emulation_cast<float>(v); }
inline int __float_as_int(float v) { return emulation_cast<int>(v); }
inline float __int_as_float(int v) { return emulation_cast<float>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.f / a; }
inline float rsqrtf(float a) { return 1.f / std::sqrt(a); }
inline int __float2int_rn(float a) { return static_cast<int>(std::nearbyint(a)); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t s) {
    const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    uint32_t r = 0;
    for (int i = 0; i < 4; ++i) r |= static_cast<uint32_t>(both >> (8 * (s >> (4 * i) & 7)) & 0xff) << (8 * i);
    return r;
}
inline uint32_t __vmaxu2(uint32_t a, uint32_t b) {
    const uint32_t lo = (a & 0xffff) > (b & 0xffff) ? a & 0xffff : b & 0xffff;
    return lo | ((a >> 16) > (b >> 16) ? a >> 16 : b >> 16) << 16;
}
template <class A, class B>
auto min(A a, B b) -> decltype(a + b) {
    return a < b ? a : b;
}
template <class A, class B>
auto max(A a, B b) -> decltype(a + b) {
    return a > b ? a : b;
}

inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    const float2 x = __half22float2(a), y = __half22float2(b), z = __half22float2(c);
    return __floats2half2_rn(std::fma(x.x, y.x, z.x), std::fma(x.y, y.y, z.y));
}
