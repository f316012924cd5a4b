// w4a16 for few tokens: a memory-bound matrix times a handful of vectors. Any sm_80+.
#pragma once

#include "../linear.h"

namespace svdq::gemv {

constexpr int kMaxTokens = 16;  // two n8 tiles of mma.sync

inline bool can_run(const svdq_linear_params& p) { return p.m <= kMaxTokens; }

// Instead of quantize: t = x . lora_down^T into the workspace; launches nothing where R = 0. With args.overlap it is
// launched beside whatever is before it.
cudaError_t lora_down(const LinearArgs& args, cudaStream_t stream);

// Instead of gemm: everything else. It reads x itself, so with args.overlap it starts beside lora_down; without a rank
// beside whatever is before it.
cudaError_t gemv_w4a16(const LinearArgs& args, cudaStream_t stream);

}  // namespace svdq::gemv
