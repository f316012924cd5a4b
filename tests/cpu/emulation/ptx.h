// The functions of plugins/kernels/ptx/ that the portable kernels use, by definition instead of by instruction. The
// fragments are the ones pictured in its mma.cuh.
#pragma once

#include "emulation.h"

namespace svdq::ptx {

using emulation::Lanes;

inline uint32_t smem_addr(const void* p) {
    return static_cast<uint32_t>(static_cast<const uint8_t*>(p) - emulation::shared_memory);
}

inline void cp_async(uint32_t dst, const void* src, bool valid, int bytes) {
    emulation::self->open.push_back({dst, src, bytes, valid ? bytes : 0});
}
inline void cp_async_16(uint32_t dst, const void* src, bool valid) { cp_async(dst, src, valid, 16); }
inline void cp_async_8(uint32_t dst, const void* src) { cp_async(dst, src, true, 8); }
inline void cp_async_commit() {
    emulation::self->groups.push_back(std::move(emulation::self->open));
    emulation::self->open.clear();
}
template <int kPending>
void cp_async_wait() {
    auto& groups = emulation::self->groups;
    for (; groups.size() > kPending; groups.pop_front())
        for (const emulation::Copy& c : groups.front()) {
            std::memset(emulation::shared_memory + c.to, 0, c.bytes);
            std::memcpy(emulation::shared_memory + c.to, c.from, c.valid_bytes);
        }
}

inline void launch_dependents() {}
inline void wait_for_previous() {}
inline uint4 load_global_16(const void* from) {
    uint4 v;
    std::memcpy(&v, from, sizeof v);
    return v;
}
inline uint4 load_global_stream_16(const void* from, bool valid) { return valid ? load_global_16(from) : uint4{}; }
inline void prefetch_l2(const void*) {}
inline void keep(uint32_t&) {}
template <class P>
void keep(const P*&) {}
inline uint32_t and_xor(uint32_t v, uint32_t mask, uint32_t flip) { return (v & mask) ^ flip; }

inline float exp2_approx(float v) { return v < -126.f ? 0.f : std::exp2(v); }
inline float rcp_approx(float v) { return 1.f / v; }

template <class V>
V load_shared(uint32_t addr) {
    V v;
    std::memcpy(&v, emulation::shared_memory + addr, sizeof v);
    return v;
}
inline uint4 load_shared_16(uint32_t addr) { return load_shared<uint4>(addr); }
inline uint2 load_shared_8(uint32_t addr) { return load_shared<uint2>(addr); }
inline uint32_t load_shared_4(uint32_t addr) { return load_shared<uint32_t>(addr); }
inline uint32_t load_shared_2(uint32_t addr) { return load_shared<uint16_t>(addr); }
inline uint32_t load_shared_1(uint32_t addr) { return load_shared<uint8_t>(addr); }

inline void store_shared_4(uint32_t addr, uint32_t v) { std::memcpy(emulation::shared_memory + addr, &v, sizeof v); }

inline void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
    emulation::warp_collective(&addr, 1, r, 4, [](const Lanes& in, Lanes& out) {
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i)
                std::memcpy(&out[lane][i], emulation::shared_memory + in[8 * i + lane / 4][0] + 4 * (lane % 4), 4);
    });
}

inline void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr) {
    emulation::warp_collective(&addr, 1, r, 4, [](const Lanes& in, Lanes& out) {
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 8; ++i) {
                const uint32_t row = in[i / 2 * 8 + lane % 4 * 2 + i % 2][0];
                std::memcpy(reinterpret_cast<uint16_t*>(out[lane]) + i, emulation::shared_memory + row + lane / 4 * 2,
                            2);
            }
    });
}

// D[16, 8] += A[16, k] . B[8, k]^T with k elements in 32 bytes; element(word, i) decodes element i of a register.
template <class Acc, class Sum, class DecodeA, class DecodeB>
void mma(Acc (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int per_word, DecodeA decode_a,
         DecodeB decode_b) {
    uint32_t in[10], out[4];
    std::memcpy(in, d, 16);
    std::memcpy(in + 4, a, 16);
    in[8] = b0, in[9] = b1;
    emulation::warp_collective(in, 10, out, 4, [&](const Lanes& all, Lanes& result) {
        for (int row = 0; row < 16; ++row)
            for (int column = 0; column < 8; ++column) {
                const int to = 4 * (row % 8) + column / 2, e = 2 * (row / 8) + column % 2;
                Acc start;
                std::memcpy(&start, &all[to][e], 4);
                Sum sum = start;
                for (int half = 0; half < 2; ++half)
                    for (int c = 0; c < 4; ++c)
                        for (int i = 0; i < per_word; ++i)
                            sum += static_cast<Sum>(decode_a(all[4 * (row % 8) + c][4 + row / 8 + 2 * half], i)) *
                                   static_cast<Sum>(decode_b(all[4 * column + c][8 + half], i));
                const Acc rounded = static_cast<Acc>(sum);
                std::memcpy(&result[to][e], &rounded, 4);
            }
    });
    std::memcpy(d, out, 16);
}

inline int s4_of(uint32_t w, int i) { return static_cast<int>(w << (28 - 4 * i)) >> 28; }
inline int u4_of(uint32_t w, int i) { return static_cast<int>(w >> (4 * i) & 15); }
inline int s8_of(uint32_t w, int i) { return static_cast<int>(w << (24 - 8 * i)) >> 24; }
inline void mma_s4_s4(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma<int, int64_t>(d, a, b0, b1, 8, s4_of, s4_of);
}
inline void mma_u4_s4(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma<int, int64_t>(d, a, b0, b1, 8, u4_of, s4_of);
}
inline void mma_s8_s8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma<int, int64_t>(d, a, b0, b1, 4, s8_of, s8_of);
}
inline void mma_16bit(__half, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const auto of = [](uint32_t w, int i) {
        return __half2float(emulation_cast<__half>(static_cast<uint16_t>(w >> (16 * i))));
    };
    mma<float, double>(d, a, b0, b1, 2, of, of);
}
inline void mma_16bit(__nv_bfloat16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const auto of = [](uint32_t w, int i) { return emulation_cast<float>(w >> (16 * i) << 16); };
    mma<float, double>(d, a, b0, b1, 2, of, of);
}
template <class T>
void mma_16bit_k8(T type, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) {
    mma_16bit(type, d, {a0, a1, 0, 0}, b0, 0);
}

#define SVDQ_NATIVE_NVFP4 0

}  // namespace svdq::ptx
