// sm_120's own mma.sync: block-scaled e2m1, compiled for sm_120a, sm_120f and sm_121a. Fragments: mma.cuh.
//
// Scales: four e4m3 bytes per row of A or B, byte j for k = 16j..16j+15. With selectors 0: lanes c = 0 and 1 of a quad
// give the A rows g and g+8; lane c = 0 gives the B row g (the others are ignored, so all may give it).
#pragma once

#include "base.cuh"

#ifndef SVDQ_EMULATION  // which has no such instruction
namespace svdq::ptx {

#if (defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1200) || \
    (defined(__CUDA_ARCH_SPECIFIC__) && __CUDA_ARCH_SPECIFIC__ >= 1200)
#define SVDQ_NATIVE_NVFP4 1
__device__ __forceinline__ void mma_nvfp4(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                          uint32_t a_scale, uint32_t b_scale) {
    constexpr uint16_t kZero = 0;
    asm("mma.sync.aligned.kind::mxf4nvf4.block_scale.scale_vec::4X.m16n8k64.row.col.f32.e2m1.e2m1.f32.ue4m3 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3}, {%10}, {%11,%12}, {%13}, {%14,%15};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(a_scale), "h"(kZero), "h"(kZero),
          "r"(b_scale), "h"(kZero), "h"(kZero));
}
#else
#define SVDQ_NATIVE_NVFP4 0
#endif

}  // namespace svdq::ptx
#endif
