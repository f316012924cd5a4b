// Describes the tensors of an attention to the kernel and launches it.
#include "portable.h"

#include <algorithm>

#include "../common/device.h"
#include "../common/launch.h"
#include "portable_kernels.h"

namespace svdq::portable {

cudaError_t attend(const svdq_attention_params& p, const AttentionWorkspace& w, cudaStream_t stream) {
    int major = 0;
    if (const cudaError_t e = device_attribute(&major, cudaDevAttrComputeCapabilityMajor); e != cudaSuccess) return e;
    const AttentionTable table = p.dtype == SVDQ_F16 ? attention_f16() : attention_bf16();
    const AttentionRow* const row =
        std::find_if(table.begin(), table.end(), [&](const AttentionRow& r) { return p.head_size <= r.head_size; });
    if (row == table.end()) return cudaErrorInvalidValue;
    const int64_t query_tiles = ceil_div(queries_of(p), row->queries);
    if (query_tiles > 0x7fffffff / p.heads / p.batch) return cudaErrorInvalidConfiguration;

    const svdq_attention_stream& first = p.streams[0];
    const uint8_t* const base = static_cast<const uint8_t*>(p.workspace);
    AttentionArgs a = {};
    const auto describe = [&](const uint8_t** tensor, uint32_t* stride, bool moved, size_t at, const void* there,
                              int64_t heads, int64_t its_stride) {
        *tensor = moved ? base + at : static_cast<const uint8_t*>(there);
        *stride = static_cast<uint32_t>(2 * (moved ? heads * p.head_size : its_stride));
    };
    describe(&a.q, &a.q_stride, w.moves_qk, w.q, first.q, p.heads, first.q_stride);
    describe(&a.k, &a.k_stride, w.moves_qk, w.k, first.k, p.kv_heads, first.kv_stride);
    describe(&a.v, &a.v_stride, w.moves_v, w.v, first.v, p.kv_heads, first.kv_stride);
    a.bias = static_cast<const uint8_t*>(p.bias);
    a.y[0] = static_cast<uint8_t*>(first.y), a.y[1] = static_cast<uint8_t*>(p.streams[1].y);
    a.heads = p.heads, a.heads_per_kv = p.heads / p.kv_heads, a.head_bytes = 2 * p.head_size;
    a.queries = static_cast<int>(queries_of(p)), a.keys = static_cast<int>(keys_of(p));
    a.split = first.q_tokens;
    a.query_tiles = static_cast<int>(query_tiles);
    constexpr float kLog2E = 1.4426950408889634f;
    a.scale_log2 = p.scale * kLog2E;
    a.bias_scale = 1.f / p.scale;
    const dim3 grid(static_cast<unsigned>(query_tiles * p.heads * p.batch));
    const bool overlap = w.moves_qk && major >= 9;
    return launch_kernel(p.bias == nullptr ? row->plain : row->bias, {grid, row->threads, row->shared_bytes, overlap},
                         stream, a);
}

}  // namespace svdq::portable
