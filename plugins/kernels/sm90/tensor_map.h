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

// Encodes them on the host (well under a microsecond each); no device work.
cudaError_t encode(std::initializer_list<std::pair<CUtensorMap*, MatrixMap>> maps);

}  // namespace svdq::sm90
