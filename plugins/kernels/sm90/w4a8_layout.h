// Sizes and layouts shared by the w4a8 kernels of sm_90a and their launchers. Host and device; no CUDA call.
//
// Order of K inside a block of 128 codes. The weight stays plain row-major packed: thread t (0..3) of a row's
// quad loads the 16 packed bytes 16t..16t+15, so it owns k = 32t..32t+31 of the block, and word j of the four
// holds k = 32t+8j..32t+8j+7, even k in the low nibbles. wgmma step j (32 codes) wants bytes 4t..4t+3 and
// 16+4t..16+4t+3 from thread t: low nibbles make the first, high nibbles the second. The sum over K does not
// care about its order, so the *activation* is stored to match:
//
//   byte p of a 128-byte block of x_q  =  code of k,   k = 32t + 8j + 2i + h,   p = 32j + 16h + 4t + i
//                                                      t, j, i in 0..3, h in 0..1
//
//   p:   0..3          4..7            ...  16..19        20..23    ...  32..35          ...
//   k:   0 2 4 6       32 34 36 38          1 3 5 7       33 35 ..       8 10 12 14      ...
#pragma once

#include <stdint.h>

#include "../common/sizes.h"
#include "../linear.h"

namespace svdq::sm90 {

constexpr int kSmemLimit = 227 * 1024;  // of a CTA
constexpr int kBlockK = 128;          // codes per pipeline stage: one 128-byte swizzled row of x_q, 64 bytes of qweight
constexpr int kMaxQuantizeK = 32768;  // a row in one CTA's registers: w4a8_quantize_rows.cuh

// The workspace: codes x_q [M, Kp] int8, order above, Kp = K rounded up to 128, padding 0; scales x_scale [M] f32; t.
inline Workspace workspace_w4a8(int64_t m, int64_t /*n*/, int64_t k, int64_t r) {
    Workspace w;
    w.scales = align_up(m * align_up(k, kBlockK), kWorkspaceAlignment);
    w.t = align_up(w.scales + m * 4, kWorkspaceAlignment);
    w.bytes = w.t + align_up(m * r * 2, kWorkspaceAlignment);
    return w;
}

}  // namespace svdq::sm90
