// Logic and approximations in one instruction.
#pragma once

#include "base.cuh"

#ifndef SVDQ_EMULATION
namespace svdq::ptx {

// (v & mask) ^ flip in one instruction, of which the compiler makes two where both are constants: the logic unit
// has half the rate of the others.
__device__ __forceinline__ uint32_t and_xor(uint32_t v, uint32_t mask, uint32_t flip) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(r) : "r"(v), "r"(mask), "r"(flip));
    return r;
}

__device__ __forceinline__ float exp2_approx(float v) {  // 0 below 2^-126
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

__device__ __forceinline__ float rcp_approx(float v) {
    float r;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

__device__ __forceinline__ float tanh_approx(float v) {  // relative error below 2^-11
    float r;
    asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(v));
    return r;
}

}  // namespace svdq::ptx
#endif
