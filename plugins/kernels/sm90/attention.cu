// Describes the tensors of an attention to the kernel and launches it.
#include "attention.h"

#include <algorithm>

#include "../common/device.h"
#include "../common/launch.h"
#include "attention_kernels.h"
#include "tensor_map.h"

namespace svdq::sm90 {
namespace {

// The maps of one of q, k and v.
cudaError_t encode_boxes(CUtensorMap* whole, CUtensorMap* end, HeadMap m) {
    m.box_cols = 64, m.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    if (const cudaError_t e = encode_heads(whole, m); e != cudaSuccess || m.head_size % 64 == 0) return e;
    m.box_cols = 16, m.swizzle = CU_TENSOR_MAP_SWIZZLE_32B;
    return encode_heads(end, m);
}

int64_t tiles_of(const AttentionRow& row, const svdq_attention_params& p) {
    return int64_t{p.batch} * p.heads * ceil_div(queries_of(p), 64 * row.wgs);
}

// The tile with the fewest cycles on the busiest SM.
const AttentionRow* choose(const AttentionTable& table, const svdq_attention_params& p, int sms) {
    constexpr float kFixed = 64.f;  // keys that the start and the end of a tile cost as much as
    const AttentionRow* best = nullptr;
    float least = 0.f;
    for (const AttentionRow& row : table) {
        if (row.head_size != p.head_size) continue;
        const auto keys = static_cast<float>(ceil_div(keys_of(p), row.keys) * row.keys);
        const auto rounds = static_cast<float>(ceil_div(tiles_of(row, p), sms));
        const float cycles = rounds * static_cast<float>(row.wgs) * (row.cost * keys + kFixed);
        if (best == nullptr || cycles < least) best = &row, least = cycles;
    }
    return best;
}

}  // namespace

cudaError_t attend(const svdq_attention_params& p, const AttentionWorkspace& w, cudaStream_t stream) {
    int sms = 0;
    if (const cudaError_t e = multiprocessors(&sms); e != cudaSuccess) return e;
    const AttentionRow* const row = choose(p.dtype == SVDQ_F16 ? attention_f16() : attention_bf16(), p, sms);
    if (row == nullptr) return cudaErrorInvalidValue;

    const svdq_attention_stream& first = p.streams[0];
    const uint8_t* const base = static_cast<const uint8_t*>(p.workspace);
    const int64_t queries = queries_of(p), keys = keys_of(p), size = p.head_size;
    const auto map = [&](bool moved, size_t at, const void* there, int64_t tokens, int64_t heads, int64_t stride,
                         int64_t box) {
        return HeadMap{moved ? base + at : there,     p.batch, tokens, heads, size,
                       moved ? heads * size : stride, box,     0,      {}};
    };
    AttentionArgs a = {};
    cudaError_t e = encode_boxes(&a.q, &a.q_end, map(w.moves_qk, w.q, first.q, queries, p.heads, first.q_stride, 64));
    if (e == cudaSuccess)
        e = encode_boxes(&a.k, &a.k_end, map(w.moves_qk, w.k, first.k, keys, p.kv_heads, first.kv_stride, row->keys));
    if (e == cudaSuccess)
        e = encode_boxes(&a.v, &a.v_end, map(w.moves_v, w.v, first.v, keys, p.kv_heads, first.kv_stride, row->keys));
    if (e != cudaSuccess) return e;
    a.bias = p.bias;
    a.y[0] = first.y, a.y[1] = p.streams[1].y;
    a.batch = p.batch, a.heads = p.heads, a.heads_per_kv = p.heads / p.kv_heads;
    a.queries = static_cast<int>(queries), a.keys = static_cast<int>(keys);
    a.split = first.q_tokens;
    a.query_tiles = static_cast<int>(ceil_div(queries, 64 * row->wgs));
    constexpr float kLog2E = 1.4426950408889634f;
    a.scale_log2 = p.scale * kLog2E;
    a.bias_scale = 1.f / p.scale;
    const dim3 grid(static_cast<unsigned>(std::min<int64_t>(tiles_of(*row, p), sms)));
    return launch_kernel(p.bias == nullptr ? row->plain : row->bias,
                         {grid, 128 * (row->wgs + 1), static_cast<size_t>(row->smem), w.moves_qk}, stream, a);
}

}  // namespace svdq::sm90
