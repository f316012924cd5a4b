// Builds TMA descriptors. The driver's encoder is looked up at run time, so nothing links against libcuda.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <stdint.h>

namespace svdq::sm90 {

// A row-major matrix [rows, cols] with `row_bytes` between rows, read or written in boxes of box_rows x
// box_cols.
// Elements outside read as zero and are not written. row_bytes % 16 == 0.
struct MatrixMap {
    const void* base;
    uint64_t rows, cols, row_bytes;
    uint32_t box_rows, box_cols;
    uint32_t elem_bytes;  // 1, 2 or 4
    CUtensorMapSwizzle swizzle;
};

// Encodes on the host (well under a microsecond); no device work.
cudaError_t encode(CUtensorMap* map, const MatrixMap& m);

}  // namespace svdq::sm90
