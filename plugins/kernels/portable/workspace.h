// The portable kernels' workspace: what quantize writes and gemm reads, and in which order. No CUDA call.
//
//   codes   int4    [M, K/2]  s4 or u4, low nibble = even k
//           w4a8    [M, K]    s8, order inside each 32 elements changed: see a8_position()
//           nvfp4   [M, K/2]  e2m1, low nibble = even k
//           w4a16   [M, K]    x^ in the act dtype, order inside each 32 elements changed: see a16_position()
//   scales  int4    [K/64, M_pad]     f32, rounded to the act dtype: converted once here, not in every tile of N
//           w4a8    [M_pad]           f32
//           nvfp4   [K/64, M_pad, 4]  e4m3 bytes
//           w4a16   [M_pad]           f32: 1, or NaN for a row of x with NaN or Inf
//           (w4a16 with M <= 16 has t alone: gemv/)
//   t       [M, R]  act dtype         x . lora_down^T
//   counters, parts                   of tiles whose K is split: split.cuh
// M_pad = M rounded up to 128. Of `scales` per group, rows are written up to M rounded up to 16, with anything; their
// order inside each 16 rows is 0, 8, 1, 9, ..., as a lane of gemm needs rows g and g + 8.
#pragma once

#include <algorithm>

#include "../common/sizes.h"
#include "../linear.h"
#include "tiles.h"

namespace svdq::portable {

// The changed order: element k of a 32-element segment of x^ lies at this place of the segment. It makes the
// weight nibbles, read by ldmatrix as they lie in qweight and unpacked with one shift and one mask, meet
// their partners.
constexpr int a8_position(int k) { return 16 * (k % 2) + 4 * (k / 8) + (k % 8) / 2; }
constexpr int a16_position(int k) { return 16 * ((k % 4) / 2) + 8 * (k % 2) + 2 * (k / 8) + (k % 8) / 4; }

// Split K. The workspace has room for every split of the shapes that gain by one, and grows with M, N and K: a TensorRT
// profile asks once, for its largest shape.
constexpr int64_t kMaxParts = 512;  // of kSplitTile's floats: 8 MiB
constexpr int64_t kMaxSplitTiles = kMaxParts / 2;
constexpr int64_t max_splits(int64_t k) { return k < 8 * 64 ? 1 : k < 32 * 64 ? k / (4 * 64) : 8; }  // 4 steps each

// Bytes of a token's codes.
constexpr int64_t code_bytes(int format, int64_t k) {
    return format == SVDQ_FORMAT_W4A8 ? k : format == SVDQ_FORMAT_W4A16 ? 2 * k : k / 2;
}

template <int kFormat>
Workspace workspace(int64_t m, int64_t n, int64_t k, int64_t r) {
    constexpr bool kGroups = kFormat == SVDQ_FORMAT_INT4 || kFormat == SVDQ_FORMAT_NVFP4;  // scales are per group
    const auto aligned = [](int64_t bytes) { return align_up(bytes, kWorkspaceAlignment); };
    Workspace w;
    w.m_pad = align_up(m, 128);
    w.scales = aligned(m * code_bytes(kFormat, k));
    w.t = w.scales + aligned((kGroups ? k / 64 : 1) * w.m_pad * 4);
    w.counters = w.t + aligned(m * r * 2);
    w.parts = w.counters;
    if (max_splits(k) > 1) {
        const int64_t tiles = ceil_div(m, kSplitTile.bm) * ceil_div(n, kSplitTile.bn);
        w.parts_bytes = std::min(tiles * max_splits(k), kMaxParts) * (kSplitTile.bm * kSplitTile.bn * 4);
        w.parts += aligned(kMaxSplitTiles * 4);
    }
    w.bytes = w.parts + aligned(w.parts_bytes);
    return w;
}

}  // namespace svdq::portable
