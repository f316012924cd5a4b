#include "attention.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "attention/portable.h"
#include "registry.h"
#include "sm90/attention.h"

namespace svdq {

AttentionWorkspace attention_workspace(const svdq_attention_params& p) {
    AttentionWorkspace w;
    w.moves_v = p.num_streams > 1;
    w.moves_qk = w.moves_v || p.streams[0].q_norm != nullptr || p.cos != nullptr;
    const auto take = [&](size_t& at, bool there, int64_t tokens, int64_t heads) {
        at = w.bytes;
        if (there) w.bytes += static_cast<size_t>(align_up(2 * p.batch * tokens * heads * p.head_size, 256));
    };
    take(w.q, w.moves_qk, queries_of(p), p.heads);
    take(w.k, w.moves_qk, keys_of(p), p.kv_heads);
    take(w.v, w.moves_v, keys_of(p), p.kv_heads);
    if (w.bytes == 0) w.bytes = 256;
    return w;
}

namespace {

// The first row that fits is taken. An architecture with a kernel of its own is a row here, as in registry.cpp.
struct AttentionKernel {
    int32_t min_sm, max_sm;
    bool (*can_attend)(int32_t head_size);
    cudaError_t (*attend)(const svdq_attention_params&, const AttentionWorkspace&, cudaStream_t);
};
constexpr AttentionKernel kTable[] = {
#if SVDQ_WITH_SM90
    {90, 90, sm90::can_attend, sm90::attend},
#endif
    {80, std::numeric_limits<int32_t>::max(), portable::can_attend, portable::attend},
};

// Null: none for such heads.
const AttentionKernel* pick(int32_t head_size, int32_t sm) {
    const AttentionKernel* const row = std::find_if(
        std::begin(kTable), std::end(kTable),
        [=](const AttentionKernel& k) { return k.min_sm <= sm && sm <= k.max_sm && k.can_attend(head_size); });
    return row == std::end(kTable) ? nullptr : row;
}

}  // namespace

bool has_attention(int32_t head_size, int32_t dtype, int32_t sm) {
    return (dtype == SVDQ_F16 || dtype == SVDQ_BF16) && has_target(sm) && pick(head_size, sm) != nullptr;
}

cudaError_t run_attention(const svdq_attention_params& p, int32_t sm, cudaStream_t stream) {
    const AttentionWorkspace w = attention_workspace(p);
    if (w.moves_qk)
        if (const cudaError_t e = prepare_attention(p, w, stream); e != cudaSuccess) return e;
    return pick(p.head_size, sm)->attend(p, w, stream);
}

}  // namespace svdq
