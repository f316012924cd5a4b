// Attention on sm_90a.
#pragma once

#include "../attention.h"

namespace svdq::sm90 {

constexpr bool can_attend(int32_t head_size) { return head_size == 64 || head_size == 72 || head_size == 128; }

// After prepare_attention(), where the workspace says that it has moved something.
cudaError_t attend(const svdq_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream);

}  // namespace svdq::sm90
