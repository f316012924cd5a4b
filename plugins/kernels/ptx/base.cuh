// What every file of ptx/ starts with. ptx/ wraps each PTX instruction of the kernels once; there is no inline
// assembly elsewhere.
//
//   ld_st.cuh      loads, stores: global, shared, another CTA's shared memory; ldmatrix, stmatrix
//   copy.cuh       cp.async
//   tma.cuh        copies by tensor map
//   mma.cuh        mma.sync; mma_sm120.cuh: sm_120's block-scaled one; wgmma.cuh: sm_90a's
//   barrier.cuh    mbarrier, cluster and named barriers, programmatic dependent launch
//   math.cuh       logic and approximations
//   registers.cuh  what stays in them, and how many a warpgroup has
//
// Names say what happens, where, and to how many bytes of a lane: load_shared_16(). Addresses of shared memory are
// 32-bit, from smem_addr(). Wrappers say from which architecture on they exist, where that is not sm_80.
#pragma once

#ifdef SVDQ_EMULATION
#include "ptx.h"  // tests/cpu/emulation: the functions that the portable kernels use, on a CPU
#define SVDQ_DYNAMIC_SHARED(name) uint8_t* const name = emulation::shared_memory
#else
#define SVDQ_DYNAMIC_SHARED(name) extern __shared__ __align__(128) uint8_t name[]

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace svdq::ptx {

__device__ __forceinline__ uint32_t smem_addr(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

}  // namespace svdq::ptx

#endif  // SVDQ_EMULATION
