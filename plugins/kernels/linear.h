// What every launcher takes, and where the intermediate results lie. Host code; no CUDA call.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "svdq/svdq.h"

namespace svdq {

// The workspace, which kernel (a) writes and kernel (b) reads. M_pad = M rounded up to 128.
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
//   counters, parts                   of tiles whose K is split: sm80/split.cuh
// Of `scales` per group, rows are written up to M rounded up to 16, with anything; their order inside each 16 rows
// is 0, 8, 1, 9, ..., as a lane of kernel (b) needs rows g and g + 8.
struct Workspace {
    size_t codes = 0, scales = 0, t = 0, counters = 0, parts = 0;  // byte offsets, multiples of 256
    size_t bytes = 0;
    int64_t parts_bytes = 0;  // 0: K is never split
    int64_t m_pad = 0;
};

// The changed order: element k of a 32-element segment of x^ lies at this place of the segment. It makes the
// weight nibbles, read by ldmatrix as they lie in qweight and unpacked with one shift and one mask, meet
// their partners.
constexpr int a8_position(int k) { return 16 * (k % 2) + 4 * (k / 8) + (k % 8) / 2; }
constexpr int a16_position(int k) {
    return 16 * ((k % 4) / 2) + 8 * (k % 2) + 2 * (k / 8) + (k % 8) / 4;
}

// Split K (portable kernels). The workspace has room for every split of the shapes that gain by one, and grows
// with M, N and K: a TensorRT profile asks once, for its largest shape.
constexpr int64_t kMaxParts = 512;           // of 64 x 64 floats: 8 MiB
constexpr int64_t kMaxSplitTiles = kMaxParts / 2;
constexpr int64_t max_splits(int64_t k) { return k < 8 * 64 ? 1 : k < 32 * 64 ? k / (4 * 64) : 8; }  // 4 steps each

inline size_t align_workspace(int64_t bytes) { return static_cast<size_t>((bytes + 255) / 256 * 256); }

inline Workspace workspace_layout(int32_t format, int64_t m, int64_t n, int64_t k, int64_t r) {
    Workspace w;
    w.m_pad = (m + 127) / 128 * 128;
    int64_t codes = 0, scales = 0;
    switch (format) {
        case SVDQ_FORMAT_INT4: codes = m * (k / 2), scales = k / 64 * w.m_pad * 4; break;
        case SVDQ_FORMAT_W4A8: codes = m * k, scales = w.m_pad * 4; break;
        case SVDQ_FORMAT_NVFP4: codes = m * (k / 2), scales = k / 64 * w.m_pad * 4; break;
        default: codes = m * k * 2, scales = w.m_pad * 4; break;
    }
    w.codes = 0;
    w.scales = w.codes + align_workspace(codes);
    w.t = w.scales + align_workspace(scales);
    w.counters = w.t + align_workspace(m * r * 2);
    w.parts = w.counters;
    if (max_splits(k) > 1) {
        const int64_t tiles = (m + 63) / 64 * ((n + 63) / 64);
        w.parts_bytes = (tiles * max_splits(k) < kMaxParts ? tiles * max_splits(k) : kMaxParts) * (64 * 64 * 4);
        w.parts += align_workspace(kMaxSplitTiles * 4);
    }
    w.bytes = w.parts + align_workspace(w.parts_bytes);
    return w;
}

// One checked call: every size and pointer has been validated, m > 0.
struct LinearArgs {
    svdq_linear_params p;
    Workspace ws;
    // The call launches (a) and (b), and the device knows programmatic dependent launch: a kernel may be launched to
    // start beside the one before it. It then waits before it reads or writes what that one may write or read.
    bool overlap = false;

    uint8_t* codes() const { return static_cast<uint8_t*>(p.workspace) + ws.codes; }
    uint8_t* scales() const { return static_cast<uint8_t*>(p.workspace) + ws.scales; }
    uint8_t* t() const { return static_cast<uint8_t*>(p.workspace) + ws.t; }
    float* parts() const { return reinterpret_cast<float*>(static_cast<uint8_t*>(p.workspace) + ws.parts); }
    // nullptr where K is never split.
    uint32_t* counters() const {
        return ws.parts_bytes ? reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(p.workspace) + ws.counters) : nullptr;
    }
    int32_t n_out() const { return p.activation == SVDQ_ACT_GEGLU ? p.n / 2 : p.n; }
};

// Enqueues work on the stream and returns the first error; reads nothing back.
using Launcher = cudaError_t (*)(const LinearArgs&, cudaStream_t);

}  // namespace svdq
