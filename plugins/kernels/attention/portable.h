// Attention by mma.sync, on every architecture.
#pragma once

#include "../attention.h"

namespace svdq::portable {

constexpr bool can_attend(int32_t head_size) { return head_size > 0 && head_size % 8 == 0 && head_size <= 128; }

// After prepare_attention(), where the workspace says that it has moved something.
cudaError_t attend(const svdq_attention_params& p, const AttentionWorkspace& workspace, cudaStream_t stream);

}  // namespace svdq::portable
