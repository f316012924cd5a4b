// Where a 16-byte chunk of a tile's row lies in shared memory.
#pragma once

#include <stdint.h>

namespace svdq {

// A tile row of kChunks x 16 bytes (2, 4 or 8). Eight consecutive rows of one ldmatrix matrix, 16 bytes each,
// must cover all 32 banks, so the chunk index is XORed with the row's place among those that share banks:
//
//   kChunks = 2   rows 0..3: chunk   0 1   rows 4..7: chunk 1 0        (4 rows are 128 bytes)
//   kChunks = 8   row r: chunk ^ r % 8                                 (1 row is)
template <int kChunks>
__device__ __forceinline__ uint32_t row_offset(int row, int chunk) {
    static_assert(kChunks == 2 || kChunks == 4 || kChunks == 8, "a row divides 128 bytes");
    return (row * kChunks + (chunk ^ (row / (8 / kChunks) % kChunks))) * 16;
}

}  // namespace svdq
