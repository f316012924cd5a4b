// s4 codes -> what an MMA takes: exact 16-bit floats, or s8 products with a group's multiplier.
#pragma once

#include "../ptx/math.cuh"
#include "types.cuh"

namespace svdq {

// ---- 16-bit floats, two at a time ---------------------------------------------------------------------------
//
// A nibble u = q + 8 (the code with its top bit flipped) is placed under a power of two (f16: 1024 + u =
// 0x6400 | u; bf16: 128 + u = 0x4300 | u), and one packed subtraction gives q. Shift and mask yield codes j
// and j + 4 of a word as a pair; the activations must be in that order too. In f16, codes 1 and 3 stay where
// they are in the byte: 1024 + 16 u, and an FMA by 1/16 takes the place of shift and subtraction.

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
    return bit_cast<uint32_t>(__hfma2(bit_cast<__half2>(v), __float2half2_rn(0.0625f), __float2half2_rn(-72.f)));
}

template <>
__device__ __forceinline__ uint32_t s4_pair<__nv_bfloat16>(uint32_t word, int j) {
    const uint32_t v = ptx::and_xor(word >> (4 * j), 0x000f000fu, 0x43084308u);
    return bit_cast<uint32_t>(__hsub2(bit_cast<__nv_bfloat162>(v), __float2bfloat162_rn(136.f)));
}

// ---- w4a8: s8(z . q), four at a time --------------------------------------------------------------------------
//
// Of each byte's low nibble u = q + 8: u . z + (128 - 8 z) = q . z + 128, which is in 2..254 for q in [-7, 7] and z in
// 1..18, so no byte carries into the next; flipping bit 7 subtracts the 128.

// 128 - 8 z in every byte: by one multiply-add, or the byte first and then four of it. Equal, but not to the compiler:
// each kernel has the one that it was measured with.
template <bool kByteFirst = false>
__device__ __forceinline__ uint32_t zq_offset(uint32_t z) {
    return kByteFirst ? (128u - 8u * z) * 0x01010101u : 0x80808080u - z * 0x08080808u;
}

// offset: zq_offset(z).
__device__ __forceinline__ uint32_t zq_bytes(uint32_t nibbles, uint32_t z, uint32_t offset) {
    return (((nibbles & 0x0f0f0f0fu) ^ 0x08080808u) * z + offset) ^ 0x80808080u;
}

}  // namespace svdq
