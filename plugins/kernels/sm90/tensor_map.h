// Builds TMA descriptors. The driver's encoder is looked up at run time, so nothing links against libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

#include <initializer_list>
#include <utility>

namespace svdq::sm90 {

// A row-major matrix [rows, cols] with `row_bytes` between rows, read in boxes of box_rows x box_cols. Elements outside
// read as zero. row_bytes % 16 == 0.
struct MatrixMap {
    const void* base;
    int64_t rows, cols, row_bytes;
    int64_t box_rows, box_cols;
    int elem_bytes;  // 1, 2 or 4
    CUtensorMapSwizzle swizzle;
};

// Heads of tokens, [batch, tokens, heads, head_size] of 16 bits, `token_stride` values between tokens, read in boxes of
// box_tokens x box_cols of one head. Values outside read as zero. token_stride % 8 == 0.
struct HeadMap {
    const void* base;
    int64_t batch, tokens, heads, head_size, token_stride;
    int64_t box_tokens, box_cols;
    CUtensorMapSwizzle swizzle;
};

// Encodes them on the host (well under a microsecond each); no device work.
cudaError_t encode(std::initializer_list<std::pair<CUtensorMap*, MatrixMap>> maps);
cudaError_t encode_heads(CUtensorMap* map, const HeadMap& heads);

}  // namespace svdq::sm90
