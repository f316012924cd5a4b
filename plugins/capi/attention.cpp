// The C API of attention: checks on the host, then kernels/attention.cpp.
#include "kernels/attention.h"

#include <algorithm>

#include "checks.h"
#include "kernels/registry.h"

namespace {

using namespace svdq::capi;

constexpr int64_t kMaxValues = int64_t{1} << 40;  // of one tensor: byte offsets stay in range
constexpr int32_t kMaxBatch = 65535;              // a grid's second dimension
constexpr int32_t kMaxHeads = 1 << 16, kMaxHeadSize = 256;

bool stream_is_valid(const svdq_attention_params& p, const svdq_attention_stream& s) {
    if (s.q_tokens < 0 || s.q_tokens > kMaxTokens || s.kv_tokens < 0 || s.kv_tokens > kMaxTokens) return false;
    if ((p.num_streams > 1 || p.cos != nullptr) && s.q_tokens != s.kv_tokens) return false;
    if ((s.q_norm == nullptr) != (s.k_norm == nullptr)) return false;
    return (s.q_norm == nullptr) == (p.streams[0].q_norm == nullptr);
}

bool attention_sizes_are_valid(const svdq_attention_params& p) {
    if (p.batch < 0 || p.batch > kMaxBatch || p.heads <= 0 || p.heads > kMaxHeads) return false;
    if (p.kv_heads <= 0 || p.heads % p.kv_heads != 0) return false;
    if (p.head_size <= 0 || p.head_size % 8 != 0 || p.head_size > kMaxHeadSize) return false;
    if (p.num_streams < 1 || p.num_streams > 2 || (p.cos == nullptr) != (p.sin == nullptr)) return false;
    for (int i = 0; i < p.num_streams; ++i)
        if (!stream_is_valid(p, p.streams[i])) return false;
    const int64_t tokens = std::max(svdq::queries_of(p), svdq::keys_of(p));
    return tokens <= kMaxTokens && p.batch * tokens <= kMaxValues / (p.heads * p.head_size);
}

bool strides_are_valid(const svdq_attention_params& p, const svdq_attention_stream& s) {
    const auto valid = [&](int64_t stride, int64_t heads) {
        return stride % 8 == 0 && stride >= heads * p.head_size && stride <= kMaxFeatures;
    };
    return valid(s.q_stride, p.heads) && valid(s.kv_stride, p.kv_heads);
}

bool stream_pointers_are_valid(const svdq_attention_stream& s) {
    if (s.q_norm != nullptr && (!is_device_pointer(s.q_norm) || !is_device_pointer(s.k_norm))) return false;
    if (s.q_tokens > 0 && (!is_device_pointer(s.q) || !is_device_pointer(s.y))) return false;
    return s.kv_tokens == 0 || (is_device_pointer(s.k) && is_device_pointer(s.v));
}

bool attention_settings_are_valid(const svdq_attention_params& p) {
    if (!attention_sizes_are_valid(p) || (p.dtype != SVDQ_F16 && p.dtype != SVDQ_BF16)) return false;
    if (!std::isfinite(p.scale) || p.scale <= 0 || !std::isfinite(p.eps) || p.eps < 0) return false;
    if (p.bias != nullptr && (p.num_streams != 1 || !is_device_pointer(p.bias))) return false;
    if (p.cos != nullptr && (!is_device_pointer(p.cos) || !is_device_pointer(p.sin))) return false;
    for (int i = 0; i < p.num_streams; ++i)
        if (!strides_are_valid(p, p.streams[i]) || !stream_pointers_are_valid(p.streams[i])) return false;
    return true;
}

svdq_status run(const svdq_attention_params* p, void* stream, bool portable) {
    if (p == nullptr || !attention_settings_are_valid(*p)) return SVDQ_BAD_ARGUMENT;
    if (p->batch == 0 || svdq::queries_of(*p) == 0) return SVDQ_OK;
    if (svdq::keys_of(*p) == 0) return SVDQ_BAD_ARGUMENT;
    if (!is_device_pointer(p->workspace) || p->workspace_bytes < svdq::attention_workspace(*p).bytes)
        return SVDQ_WORKSPACE;

    int32_t sm = 0;
    const svdq_status status = current_sm(&sm);
    if (status != SVDQ_OK) return status;
    if (!svdq::has_attention(p->head_size, p->dtype, sm)) return SVDQ_UNSUPPORTED;
    return cuda_status(svdq::run_attention(*p, portable ? svdq::kPortableSm : sm, static_cast<cudaStream_t>(stream)));
}

}  // namespace

extern "C" {

svdq_status svdq_attention_workspace_bytes(const svdq_attention_params* sizes, size_t* bytes) {
    if (sizes == nullptr || bytes == nullptr || !attention_sizes_are_valid(*sizes)) return SVDQ_BAD_ARGUMENT;
    *bytes = svdq::attention_workspace(*sizes).bytes;
    return SVDQ_OK;
}

svdq_status svdq_attention(const svdq_attention_params* p, void* stream) { return run(p, stream, false); }
svdq_status svdq_attention_portable(const svdq_attention_params* p, void* stream) { return run(p, stream, true); }

int32_t svdq_attention_supports(int32_t head_size, int32_t dtype, int32_t sm) {
    return svdq::has_attention(head_size, dtype, sm) ? 1 : 0;
}

}  // extern "C"
