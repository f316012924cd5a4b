// One wrapper per PTX instruction; nothing else in the kernels is inline assembly (sm90/ has its own).
//
// Fragment names below: lane = 4*g + c, g = 0..7, c = 0..3.
//   A, 16 rows x 32 bytes:  a0 = (row g,   byte 4c..4c+3)   a1 = (row g+8, same bytes)
//                           a2 = (row g,   byte 16+4c..)    a3 = (row g+8, same bytes)
//   B,  8 rows x 32 bytes:  b0 = (row g,   byte 4c..4c+3)   b1 = (row g, byte 16+4c..)
//   D, 16 x 8:              d0, d1 = (row g, cols 2c, 2c+1) d2, d3 = (row g+8, same cols)
// "32 bytes" are 64 x 4 bit, 32 x 8 bit or 16 x 16 bit: the picture is one and the same for every type, and
// it is exactly what ldmatrix delivers from row-major rows.
#pragma once

#ifdef SVDQ_EMULATION
#include "ptx.h"  // tests/cpu/emulation: the same functions on a CPU
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

// ---- asynchronous copies, sm_80 ---------------------------------------------------------------------------

// 16 bytes global -> shared, past L1. `valid` false: 16 zero bytes, and `src` is not read.
__device__ __forceinline__ void cp_async_16(uint32_t dst, const void* src, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}

// 8 bytes, through L1 (cp.async.cg takes 16 only).
__device__ __forceinline__ void cp_async_8(uint32_t dst, const void* src, bool valid) {
    const int bytes = valid ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(dst), "l"(src), "r"(bytes) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are in flight.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// CTAs per SM to allocate registers for. sm_120 has shared memory for fewer, and its code takes a few registers more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int min_ctas(int wanted) { return wanted > 1 ? wanted - 1 : 1; }
#else
constexpr int min_ctas(int wanted) { return wanted; }
#endif

// ---- hints for the compiler -------------------------------------------------------------------------------

// Hides from the compiler how a value was made, so that it stays in its register: with registers to spare, it
// would still make addresses anew in every step of a loop.
__device__ __forceinline__ void keep(uint32_t& v) { asm volatile("" : "+r"(v)); }
template <class P>
__device__ __forceinline__ void keep(const P*& v) {
    asm volatile("" : "+l"(v));
}

// (v & mask) ^ flip in one instruction, of which the compiler makes two where both are constants: the logic unit
// has half the rate of the others.
__device__ __forceinline__ uint32_t and_xor(uint32_t v, uint32_t mask, uint32_t flip) {
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(r) : "r"(v), "r"(mask), "r"(flip));
    return r;
}

// ---- programmatic dependent launch, sm_90 (nothing below) -------------------------------------------------

// Lets the next kernel of the stream start, if it was launched so.
__device__ __forceinline__ void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernel before this one is done and what it wrote can be read.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// 16 bytes that another kernel may just have written: __ldg() may be moved, also past a wait.
__device__ __forceinline__ uint4 load_global_16(const void* from) {
    uint4 v;
    asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from)
                 : "memory");
    return v;
}

// Asks for the 64 bytes around an address in the L2: a hint, so allowed before wait_for_previous().
__device__ __forceinline__ void prefetch_l2(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

// ---- fragments, sm_75 -------------------------------------------------------------------------------------

// Four 8-row x 16-byte matrices; lanes 8i..8i+7 give the row addresses of matrix i, register i receives it.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(addr)
                 : "memory");
}

// Plain loads by shared address; volatile, as the memory is filled by cp.async.
__device__ __forceinline__ uint4 load_shared_16(uint32_t addr) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(addr)
                 : "memory");
    return v;
}

__device__ __forceinline__ uint2 load_shared_8(uint32_t addr) {
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(addr) : "memory");
    return v;
}

__device__ __forceinline__ uint32_t load_shared_4(uint32_t addr) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");
    return v;
}

__device__ __forceinline__ uint32_t load_shared_2(uint32_t addr) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(addr) : "memory");
    return v;
}

__device__ __forceinline__ uint32_t load_shared_1(uint32_t addr) {
    uint32_t v;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");
    return v;
}

// ---- matrix multiply, sm_80 -------------------------------------------------------------------------------

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

#define SVDQ_MMA_16BIT(TYPE, TYPES) \
    __device__ __forceinline__ void mma_16bit(TYPE, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, \
                                              uint32_t b1) { \
        asm("mma.sync.aligned.m16n8k16.row.col." TYPES " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1)); \
    }
SVDQ_MMA_16BIT(__half, "f32.f16.f16.f32")
SVDQ_MMA_16BIT(__nv_bfloat16, "f32.bf16.bf16.f32")
#undef SVDQ_MMA_16BIT

// ---- block-scaled e2m1, sm_120a/f and sm_121a -------------------------------------------------------------

#if (defined(__CUDA_ARCH_FAMILY_SPECIFIC__) && __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1200) || \
    (defined(__CUDA_ARCH_SPECIFIC__) && __CUDA_ARCH_SPECIFIC__ >= 1200)
#define SVDQ_NATIVE_NVFP4 1
// Scales: four e4m3 bytes per row of A or B, byte j for k = 16j..16j+15. With selectors 0: lanes c = 0 and 1
// of a quad give the A rows g and g+8; lane c = 0 gives the B row g (the others are ignored, so all may give
// it).
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

#endif  // SVDQ_EMULATION
