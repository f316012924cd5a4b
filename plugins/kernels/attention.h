// Softmax attention: what q, k and v are made ready in, and the kernel. Host code; attention.cpp picks.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "common/sizes.h"
#include "svdq/svdq.h"

namespace svdq {

// What lies in the workspace: q, k and v as one sequence, normed and rotated; each [batch, tokens, heads, head_size].
struct AttentionWorkspace {
    size_t q = 0, k = 0, v = 0, bytes = 0;   // offsets, and the sum
    bool moves_qk = false, moves_v = false;  // what is not there is read where the caller has it
};

inline int64_t queries_of(const svdq_attention_params& p) {
    return int64_t{p.streams[0].q_tokens} + (p.num_streams > 1 ? p.streams[1].q_tokens : 0);
}
inline int64_t keys_of(const svdq_attention_params& p) {
    return int64_t{p.streams[0].kv_tokens} + (p.num_streams > 1 ? p.streams[1].kv_tokens : 0);
}

AttentionWorkspace attention_workspace(const svdq_attention_params& p);

// True if the library holds an attention kernel for this head size on compute capability `sm`.
bool has_attention(int32_t head_size, int32_t dtype, int32_t sm);

// q, k (and v of two streams) into the workspace. For every architecture.
cudaError_t prepare_attention(const svdq_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream);

// All of it, by the kernel for compute capability `sm`; has_attention() holds, and there are queries and keys.
cudaError_t run_attention(const svdq_attention_params& p, int32_t sm, cudaStream_t stream);

}  // namespace svdq
