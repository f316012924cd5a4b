// s4 codes -> exact 16-bit floats, two at a time.
//
// A nibble u = q + 8 (the code with its top bit flipped) is placed under a power of two (f16: 1024 + u =
// 0x6400 | u; bf16: 128 + u = 0x4300 | u), and one packed subtraction gives q. Shift and mask yield codes j
// and j + 4 of a word as a pair; the activations must be in that order too. In f16, codes 1 and 3 stay where
// they are in the byte: 1024 + 16 u, and an FMA by 1/16 takes the place of shift and subtraction.
#pragma once

#include "ptx.cuh"
#include "types.cuh"

namespace svdq {

template <class T>
__device__ __forceinline__ uint32_t s4_pair(uint32_t word, int j);

template <>
__device__ __forceinline__ uint32_t s4_pair<__half>(uint32_t word, int j) {
    const uint32_t w = j < 2 ? word : word >> 8;
    if (j % 2 == 0) {
        const uint32_t v = ptx::and_xor(w, 0x000f000fu, 0x64086408u);
        return bit_cast<uint32_t>(__hsub2(bit_cast<__half2>(v), __float2half2_rn(1032.f)));
    }
    const uint32_t v = ptx::and_xor(w, 0x00f000f0u, 0x64806480u);
    return bit_cast<uint32_t>(
        __hfma2(bit_cast<__half2>(v), __float2half2_rn(0.0625f), __float2half2_rn(-72.f)));
}

template <>
__device__ __forceinline__ uint32_t s4_pair<__nv_bfloat16>(uint32_t word, int j) {
    const uint32_t v = ptx::and_xor(word >> (4 * j), 0x000f000fu, 0x43084308u);
    return bit_cast<uint32_t>(__hsub2(bit_cast<__nv_bfloat162>(v), __float2bfloat162_rn(136.f)));
}

}  // namespace svdq
