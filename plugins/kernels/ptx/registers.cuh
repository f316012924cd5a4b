// What stays in registers, and how many of them a warpgroup has.
#pragma once

#include "base.cuh"

#ifndef SVDQ_EMULATION
namespace svdq::ptx {

// Hides from the compiler how a value was made, so that it stays in its register: with registers to spare, it
// would still make addresses anew in every step of a loop.
__device__ __forceinline__ void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
template <class P>
__device__ __forceinline__ void keep(const P*& v) {
    asm volatile("" : "+l"(v));
}

// Registers of each thread of this warpgroup from here on; more come when others have given theirs up. sm_90a.
template <int kRegisters>
__device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace svdq::ptx
#endif
