// mma.sync.
//
// Fragment names: lane = 4*g + c, g = 0..7, c = 0..3.
//   A, 16 rows x 32 bytes:  a0 = (row g,   byte 4c..4c+3)   a1 = (row g+8, same bytes)
//                           a2 = (row g,   byte 16+4c..)    a3 = (row g+8, same bytes)
//   B,  8 rows x 32 bytes:  b0 = (row g,   byte 4c..4c+3)   b1 = (row g, byte 16+4c..)
//   D, 16 x 8:              d0, d1 = (row g, cols 2c, 2c+1) d2, d3 = (row g+8, same cols)
// "32 bytes" are 64 x 4 bit, 32 x 8 bit or 16 x 16 bit: the picture is one and the same for every type, and
// it is exactly what ldmatrix delivers from row-major rows.
#pragma once

#include "base.cuh"

#ifndef SVDQ_EMULATION
namespace svdq::ptx {

#define SVDQ_MMA_INT(NAME, SHAPE_AND_TYPES) \
    __device__ __forceinline__ void NAME(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
        asm("mma.sync.aligned." SHAPE_AND_TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
            : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
    }
SVDQ_MMA_INT(mma_s4_s4, "m16n8k64.row.col.s32.s4.s4.s32")
SVDQ_MMA_INT(mma_u4_s4, "m16n8k64.row.col.s32.u4.s4.s32")
SVDQ_MMA_INT(mma_s8_s8, "m16n8k32.row.col.s32.s8.s8.s32")
#undef SVDQ_MMA_INT

// m16n8k16, and m16n8k8: rows of 16 bytes, a0, a1 and b0 alone.
#define SVDQ_MMA_16BIT(TYPE, TYPES) \
    __device__ __forceinline__ void mma_16bit(TYPE, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) { \
        asm("mma.sync.aligned.m16n8k16.row.col." TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
    } \
    __device__ __forceinline__ void mma_16bit_k8(TYPE, float (&d)[4], uint32_t a0, uint32_t a1, uint32_t b0) { \
        asm("mma.sync.aligned.m16n8k8.row.col." TYPES " {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};" \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
            : "r"(a0), "r"(a1), "r"(b0)); \
    }
SVDQ_MMA_16BIT(__half, "f32.f16.f16.f32")
SVDQ_MMA_16BIT(__nv_bfloat16, "f32.bf16.bf16.f32")
#undef SVDQ_MMA_16BIT

}  // namespace svdq::ptx
#endif
