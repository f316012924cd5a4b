// The two activation types, and 32-bit words that hold a pair of them (low half = lower index).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace svdq {

template <class To, class From>
__device__ __forceinline__ To bit_cast(From v) {
    static_assert(sizeof(To) == sizeof(From), "bit_cast keeps the size");
    To r;
    memcpy(&r, &v, sizeof(To));
    return r;
}

template <class T>
struct Act16;

template <>
struct Act16<__half> {
    using Pair = __half2;
    static constexpr uint32_t kInfBits = 0x7c00;  // |bits| >= this: Inf or NaN
    static __device__ __forceinline__ float to_float(uint32_t bits) {
        return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    }
    static __device__ __forceinline__ uint32_t to_bits(float v) { return __half_as_ushort(__float2half_rn(v)); }
    // Rounds without saturation: Inf stays Inf.
    static __device__ __forceinline__ uint32_t to_pair(float lo, float hi) {
        return bit_cast<uint32_t>(__floats2half2_rn(lo, hi));
    }
    // Before the one rounding of the output: +-65504 at most; a NaN fails both comparisons and stays.
    static __device__ __forceinline__ float saturate(float v) {
        v = v > 65504.f ? 65504.f : v;
        return v < -65504.f ? -65504.f : v;
    }
    // The same for two values after the rounding, which takes half the instructions.
    static __device__ __forceinline__ uint32_t saturate_pair(uint32_t pair) {
        const __half2 v = __hmin2_nan(bit_cast<__half2>(pair), __float2half2_rn(65504.f));
        return bit_cast<uint32_t>(__hmax2_nan(v, __float2half2_rn(-65504.f)));
    }
};

template <>
struct Act16<__nv_bfloat16> {
    using Pair = __nv_bfloat162;
    static constexpr uint32_t kInfBits = 0x7f80;
    static __device__ __forceinline__ float to_float(uint32_t bits) { return __uint_as_float(bits << 16); }
    static __device__ __forceinline__ uint32_t to_bits(float v) { return __bfloat16_as_ushort(__float2bfloat16_rn(v)); }
    static __device__ __forceinline__ uint32_t to_pair(float lo, float hi) {
        return bit_cast<uint32_t>(__floats2bfloat162_rn(lo, hi));
    }
    static __device__ __forceinline__ float saturate(float v) { return v; }
    static __device__ __forceinline__ uint32_t saturate_pair(uint32_t pair) { return pair; }
};

template <class T>
__device__ __forceinline__ float low_to_float(uint32_t pair) {
    return Act16<T>::to_float(pair & 0xffffu);
}

template <class T>
__device__ __forceinline__ float high_to_float(uint32_t pair) {
    return Act16<T>::to_float(pair >> 16);
}

// Rounds to the output's pair, which saturates.
template <class T>
__device__ __forceinline__ uint32_t pack(float lo, float hi) {
    return Act16<T>::saturate_pair(Act16<T>::to_pair(lo, hi));
}

// Both products, each rounded once.
template <class T>
__device__ __forceinline__ uint32_t multiply_pairs(uint32_t a, uint32_t b) {
    using Pair = typename Act16<T>::Pair;
    return bit_cast<uint32_t>(__hmul2_rn(bit_cast<Pair>(a), bit_cast<Pair>(b)));
}

// In each half the larger of `top` and |v|; NaN wins. (With max.NaN.xorsign.abs an H200 gave too small a maximum in
// some rows.)
template <class T>
__device__ __forceinline__ uint32_t max_abs_pairs(uint32_t top, uint32_t v) {
    using Pair = typename Act16<T>::Pair;
    return bit_cast<uint32_t>(__hmax2_nan(bit_cast<Pair>(top), __habs2(bit_cast<Pair>(v))));
}

}  // namespace svdq
