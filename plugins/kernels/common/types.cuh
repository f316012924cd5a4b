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
struct TypeTraits;

template <>
struct TypeTraits<__half> {
    static constexpr uint32_t kInfBits = 0x7c00;  // |bits| >= this: Inf or NaN
    static __device__ __forceinline__ float to_float(uint32_t bits) {
        return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    }
    static __device__ __forceinline__ uint32_t to_bits(float v) { return __half_as_ushort(__float2half_rn(v)); }
    static __device__ __forceinline__ uint32_t to_pair(float lo, float hi) {
        return bit_cast<uint32_t>(__floats2half2_rn(lo, hi));
    }
    // The one rounding of the output: saturates at +-65504; a NaN fails both comparisons and stays.
    static __device__ __forceinline__ float saturate(float v) {
        v = v > 65504.f ? 65504.f : v;
        return v < -65504.f ? -65504.f : v;
    }
};

template <>
struct TypeTraits<__nv_bfloat16> {
    static constexpr uint32_t kInfBits = 0x7f80;
    static __device__ __forceinline__ float to_float(uint32_t bits) { return __uint_as_float(bits << 16); }
    static __device__ __forceinline__ uint32_t to_bits(float v) {
        return __bfloat16_as_ushort(__float2bfloat16_rn(v));
    }
    static __device__ __forceinline__ uint32_t to_pair(float lo, float hi) {
        return bit_cast<uint32_t>(__floats2bfloat162_rn(lo, hi));
    }
    static __device__ __forceinline__ float saturate(float v) { return v; }
};

template <class T>
__device__ __forceinline__ float low_to_float(uint32_t pair) {
    return TypeTraits<T>::to_float(pair & 0xffffu);
}

template <class T>
__device__ __forceinline__ float high_to_float(uint32_t pair) {
    return TypeTraits<T>::to_float(pair >> 16);
}

}  // namespace svdq
