// q^ and k^ of attention, as one sequence: norm over each head, rotation, one rounding. v of two streams is copied.
//
// A CTA has one token; kLanes threads have a head, 8 features each, and go through the heads of q, k and v. Bound by
// memory: each value is read once and written once.
#include "../attention.h"
#include "../common/launch.h"
#include "../common/types.cuh"
#include "../ptx/barrier.cuh"
#include "../ptx/ld_st.cuh"

namespace svdq {
namespace {

constexpr int kThreads = 256, kCtas = 4;  // CTAs per SM

struct StreamArgs {
    const void *q, *k, *v, *q_norm, *k_norm;
    int64_t q_stride, kv_stride;
    int tokens;
};
struct PrepareArgs {
    StreamArgs streams[2];
    void *q, *k, *v;  // v null: stays where it is
    const float *cos, *sin;
    int heads, kv_heads, head_size, tokens;
    float eps;
};

template <class T>
__device__ __forceinline__ void to_floats(float (&f)[8], const uint4& v) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        f[2 * i] = low_to_float<T>(words[i]);
        f[2 * i + 1] = high_to_float<T>(words[i]);
    }
}

enum class Kind { kQ, kK, kV };
struct HeadOf {
    Kind kind;
    int head;
    const void* from;
    int64_t stride;
    void* to;
};

// Heads of a token in the order q, k, v.
__device__ __forceinline__ HeadOf head_of(const PrepareArgs& p, const StreamArgs& from, int unit) {
    if (unit < p.heads) return {Kind::kQ, unit, from.q, from.q_stride, p.q};
    const int head = unit - p.heads;
    if (head < p.kv_heads) return {Kind::kK, head, from.k, from.kv_stride, p.k};
    return {Kind::kV, head - p.kv_heads, from.v, from.kv_stride, p.v};
}

// Over kLanes threads.
template <int kLanes>
__device__ __forceinline__ float sum_of_squares(const float (&x)[8]) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(x[i], x[i], sum);
#pragma unroll
    for (int far = kLanes / 2; far > 0; far /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, far);
    return sum;
}

__device__ __forceinline__ void turn(float& a, float& b, float cos, float sin) {
    const float before = a;
    a = before * cos - b * sin;
    b = b * cos + before * sin;
}

// kLanes: a power of two, at least head_size / 8.
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, kCtas) prepare_kernel(const __grid_constant__ PrepareArgs p) {
    ptx::launch_dependents();
    ptx::wait_for_previous();
    const int token = static_cast<int>(blockIdx.x), batch = static_cast<int>(blockIdx.y);
    const bool second = token >= p.streams[0].tokens;
    const StreamArgs& from = p.streams[second ? 1 : 0];
    const int64_t row = int64_t{batch} * from.tokens + token - (second ? p.streams[0].tokens : 0);
    const int64_t to_row = int64_t{batch} * p.tokens + token;
    const int lane = static_cast<int>(threadIdx.x) % kLanes, column = 8 * lane;
    const bool inside = column < p.head_size;

    // What all heads need, unpacked only where it is used: nothing waits for it before the first heads are asked for.
    float4 cos[2], sin[2];  // of both features of a pair the same
    uint4 q_norm, k_norm;
    if (p.cos != nullptr && inside) {
        const int64_t at = int64_t{token} * p.head_size + column;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            cos[i] = reinterpret_cast<const float4*>(p.cos + at)[i];
            sin[i] = reinterpret_cast<const float4*>(p.sin + at)[i];
        }
    }
    if (from.q_norm != nullptr && inside) {
        q_norm = ptx::load_global_16(static_cast<const T*>(from.q_norm) + column);
        k_norm = ptx::load_global_16(static_cast<const T*>(from.k_norm) + column);
    }

    // Loads of kAhead heads are in flight at a time.
    constexpr int kAhead = 3, kGroups = kThreads / kLanes;
    const int units = p.heads + (p.v != nullptr ? 2 : 1) * p.kv_heads;
    for (int start = 0; start < units; start += kAhead * kGroups) {  // the same for all threads: lanes shuffle
        const int first = start + static_cast<int>(threadIdx.x) / kLanes;
        uint4 values[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int unit = first + i * kGroups;
            const HeadOf at = head_of(p, from, unit);
            values[i] = ptx::load_global_stream_16(
                static_cast<const T*>(at.from) + row * at.stride + int64_t{at.head} * p.head_size + column,
                inside && unit < units);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            const int unit = first + i * kGroups;
            const HeadOf at = head_of(p, from, unit);
            uint4 value = values[i];
            float x[8], by = 1.f;
            to_floats<T>(x, value);
            if (from.q_norm != nullptr)  // v's threads, too, and idle ones: all of a warp shuffle
                by = rsqrtf(sum_of_squares<kLanes>(x) / static_cast<float>(p.head_size) + p.eps);
            if (at.kind != Kind::kV) {
                if (from.q_norm != nullptr) {
                    float weight[8];
                    to_floats<T>(weight, at.kind == Kind::kQ ? q_norm : k_norm);
#pragma unroll
                    for (int j = 0; j < 8; ++j) x[j] = x[j] * by * weight[j];
                }
                if (p.cos != nullptr) {
                    turn(x[0], x[1], cos[0].x, sin[0].x);
                    turn(x[2], x[3], cos[0].z, sin[0].z);
                    turn(x[4], x[5], cos[1].x, sin[1].x);
                    turn(x[6], x[7], cos[1].z, sin[1].z);
                }
                const auto pair = [&](int j) { return pack<T>(x[2 * j], x[2 * j + 1]); };
                value = {pair(0), pair(1), pair(2), pair(3)};
            }
            if (inside && unit < units) {
                const int64_t to_head = to_row * (at.kind == Kind::kQ ? p.heads : p.kv_heads) + at.head;
                *reinterpret_cast<uint4*>(static_cast<T*>(at.to) + to_head * p.head_size + column) = value;
            }
        }
    }
}

template <class T>
cudaError_t launch(const PrepareArgs& a, dim3 grid, cudaStream_t stream) {
    const auto kernel = a.head_size <= 64 ? prepare_kernel<T, 8> : prepare_kernel<T, 16>;  // 128 at most
    return launch_kernel(kernel, {grid, kThreads}, stream, a);
}

}  // namespace

cudaError_t prepare_attention(const svdq_attention_params& p, const AttentionWorkspace& workspace,
                              cudaStream_t stream) {
    PrepareArgs a = {};
    for (int i = 0; i < p.num_streams; ++i) {
        const svdq_attention_stream& s = p.streams[i];
        a.streams[i] = {s.q, s.k, s.v, s.q_norm, s.k_norm, s.q_stride, s.kv_stride, s.q_tokens};
    }
    uint8_t* const base = static_cast<uint8_t*>(p.workspace);
    a.q = base + workspace.q, a.k = base + workspace.k, a.v = workspace.moves_v ? base + workspace.v : nullptr;
    a.cos = p.cos, a.sin = p.sin;
    a.heads = p.heads, a.kv_heads = p.kv_heads, a.head_size = p.head_size, a.tokens = static_cast<int>(queries_of(p));
    a.eps = p.eps;
    const dim3 grid(static_cast<unsigned>(a.tokens), static_cast<unsigned>(p.batch));
    return p.dtype == SVDQ_F16 ? launch<__half>(a, grid, stream) : launch<__nv_bfloat16>(a, grid, stream);
}

}  // namespace svdq
