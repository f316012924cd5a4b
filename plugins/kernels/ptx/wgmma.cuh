// wgmma, sm_90a: one wrapper per (types, N), for those that a kernel uses. Accumulators `d` live in registers.
//
// Fragments, warp w of the warpgroup, lane l, g = l/4, t = l%4:
//   d[4j+0], d[4j+1] = D[16w+g  ][8j+2t], [8j+2t+1]      j = 0..N/8-1
//   d[4j+2], d[4j+3] = D[16w+g+8][8j+2t], [8j+2t+1]
//   A, s8 (k32):  a[0] = [16w+g][4t..4t+3]   a[1] = [16w+g+8][4t..]   a[2], a[3] = the same, k + 16
//   A, 16 bit:    a[0] = [16w+g][2t, 2t+1]   a[1] = [16w+g+8][2t..]   a[2], a[3] = the same, k + 8
// B (and A of WgmmaSs) is in shared memory and given as a descriptor: K-major, but for WgmmaT.
#pragma once

#include <type_traits>

#include "base.cuh"

namespace svdq::ptx {

// Descriptor of a K-major operand with 128-byte rows and 128-byte swizzle (atoms of 8 rows, 1024 bytes,
// 1024-aligned). Advancing by 32 bytes along K adds 2.
__device__ __forceinline__ uint64_t wgmma_rows_128(uint32_t addr) {
    return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (uint64_t{1} << 16) | ((addr & 0x3ffff) >> 4);
}

// The same with 64-byte rows and 64-byte swizzle (atoms of 512 bytes, 512-aligned).
__device__ __forceinline__ uint64_t wgmma_rows_64(uint32_t addr) {
    return (uint64_t{2} << 62) | (uint64_t{512 >> 4} << 32) | (uint64_t{1} << 16) | ((addr & 0x3ffff) >> 4);
}

// The same with 32-byte rows and 32-byte swizzle (atoms of 256 bytes, 256-aligned).
__device__ __forceinline__ uint64_t wgmma_rows_32(uint32_t addr) {
    return (uint64_t{3} << 62) | (uint64_t{256 >> 4} << 32) | (uint64_t{1} << 16) | ((addr & 0x3ffff) >> 4);
}

// Descriptor of an N-major B: rows of K with 64 values of N each (128 bytes, 128-byte swizzle), panels of them
// `panel_bytes` apart for more of N. Advancing by 16 rows along K adds 128.
__device__ __forceinline__ uint64_t wgmma_panels_128(uint32_t addr, uint32_t panel_bytes) {
    return (uint64_t{1} << 62) | (uint64_t{1024 >> 4} << 32) | (static_cast<uint64_t>(panel_bytes >> 4) << 16) |
           ((addr & 0x3ffff) >> 4);
}

// The same with 16 values of N (32 bytes, 32-byte swizzle) and no second panel. Advancing by 16 rows adds 32.
__device__ __forceinline__ uint64_t wgmma_panel_32(uint32_t addr) { return wgmma_rows_32(addr); }

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

#define SVDQ_P0 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define SVDQ_P1 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SVDQ_P2 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define SVDQ_P3 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SVDQ_P4 "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SVDQ_P5 "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SVDQ_P6 "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define SVDQ_P7 "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SVDQ_E8(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define SVDQ_E16(c, i) SVDQ_E8(c, i), SVDQ_E8(c, i + 8)
#define SVDQ_L4 "%0, %1, %2, %3"
#define SVDQ_D4(c) c(d[0]), c(d[1]), c(d[2]), c(d[3])
#define SVDQ_D16(c) SVDQ_E16(c, 0)
#define SVDQ_L16 SVDQ_P0
#define SVDQ_L32 SVDQ_P0 ", " SVDQ_P1
#define SVDQ_D32(c) SVDQ_E16(c, 0), SVDQ_E16(c, 16)
#define SVDQ_L40 SVDQ_L32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SVDQ_D40(c) SVDQ_D32(c), SVDQ_E8(c, 32)
#define SVDQ_L64 SVDQ_P0 ", " SVDQ_P1 ", " SVDQ_P2 ", " SVDQ_P3
#define SVDQ_D64(c) SVDQ_E16(c, 0), SVDQ_E16(c, 16), SVDQ_E16(c, 32), SVDQ_E16(c, 48)
#define SVDQ_L80 SVDQ_P0 ", " SVDQ_P1 ", " SVDQ_P2 ", " SVDQ_P3 ", " SVDQ_P4
#define SVDQ_D80(c) SVDQ_E16(c, 0), SVDQ_E16(c, 16), SVDQ_E16(c, 32), SVDQ_E16(c, 48), SVDQ_E16(c, 64)
#define SVDQ_L96 SVDQ_P0 ", " SVDQ_P1 ", " SVDQ_P2 ", " SVDQ_P3 ", " SVDQ_P4 ", " SVDQ_P5
#define SVDQ_D96(c) SVDQ_E16(c, 0), SVDQ_E16(c, 16), SVDQ_E16(c, 32), SVDQ_E16(c, 48), SVDQ_E16(c, 64), SVDQ_E16(c, 80)
#define SVDQ_L128 SVDQ_P0 ", " SVDQ_P1 ", " SVDQ_P2 ", " SVDQ_P3 ", " SVDQ_P4 ", " SVDQ_P5 ", " SVDQ_P6 ", " SVDQ_P7
#define SVDQ_D128(c) \
    SVDQ_E16(c, 0), SVDQ_E16(c, 16), SVDQ_E16(c, 32), SVDQ_E16(c, 48), SVDQ_E16(c, 64), SVDQ_E16(c, 80), \
        SVDQ_E16(c, 96), SVDQ_E16(c, 112)

template <int kN>
struct Wgmma;  // s8, f16, bf16: D[64][N] (+)= A[64][32 or 16] (registers) * B[N][32 or 16]^T (shared memory)

// acc: number of accumulator registers of a thread, N/2. i0..i4: operand numbers after them.
#define SVDQ_WGMMA(N, acc, i0, i1, i2, i3, i4) \
    template <> \
    struct Wgmma<N> { \
        static __device__ __forceinline__ void s8(int32_t (&d)[acc], const uint32_t (&a)[4], uint64_t b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k32.s32.s8.s8 {" SVDQ_L##acc \
                         "}, {" i0 ", " i1 ", " i2 ", " i3 "}, " i4 ", 1;" \
                         : SVDQ_D##acc("+r") \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
        static __device__ __forceinline__ void f16(float (&d)[acc], const uint32_t (&a)[4], uint64_t b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" SVDQ_L##acc \
                         "}, {" i0 ", " i1 ", " i2 ", " i3 "}, " i4 ", 1, 1, 1, 0;" \
                         : SVDQ_D##acc("+f") \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
        static __device__ __forceinline__ void bf16(float (&d)[acc], const uint32_t (&a)[4], uint64_t b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SVDQ_L##acc \
                         "}, {" i0 ", " i1 ", " i2 ", " i3 "}, " i4 ", 1, 1, 1, 0;" \
                         : SVDQ_D##acc("+f") \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
    };
SVDQ_WGMMA(64, 32, "%32", "%33", "%34", "%35", "%36")
SVDQ_WGMMA(128, 64, "%64", "%65", "%66", "%67", "%68")
SVDQ_WGMMA(160, 80, "%80", "%81", "%82", "%83", "%84")
SVDQ_WGMMA(192, 96, "%96", "%97", "%98", "%99", "%100")
SVDQ_WGMMA(256, 128, "%128", "%129", "%130", "%131", "%132")
#undef SVDQ_WGMMA

template <int kN, bool kAdd = true>
struct WgmmaSs;  // as Wgmma, A in shared memory too; kAdd false: D = A * B

#define SVDQ_WGMMA_SS(N, acc, i0, i1, i2) \
    template <bool kAdd> \
    struct WgmmaSs<N, kAdd> { \
        static __device__ __forceinline__ void f16(float (&d)[acc], uint64_t a, uint64_t b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" SVDQ_L##acc \
                         "}, " i0 ", " i1 ", " i2 ", 1, 1, 0, 0;" \
                         : SVDQ_D##acc("+f") \
                         : "l"(a), "l"(b), "n"(kAdd ? 1 : 0)); \
        } \
        static __device__ __forceinline__ void bf16(float (&d)[acc], uint64_t a, uint64_t b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SVDQ_L##acc \
                         "}, " i0 ", " i1 ", " i2 ", 1, 1, 0, 0;" \
                         : SVDQ_D##acc("+f") \
                         : "l"(a), "l"(b), "n"(kAdd ? 1 : 0)); \
        } \
    };
SVDQ_WGMMA_SS(32, 16, "%16", "%17", "%18")
SVDQ_WGMMA_SS(64, 32, "%32", "%33", "%34")
SVDQ_WGMMA_SS(80, 40, "%40", "%41", "%42")
SVDQ_WGMMA_SS(128, 64, "%64", "%65", "%66")
SVDQ_WGMMA_SS(160, 80, "%80", "%81", "%82")
#undef SVDQ_WGMMA_SS

template <int kN>
struct WgmmaT;  // as Wgmma, B N-major (wgmma_panels_128(), wgmma_panel_32())

#define SVDQ_WGMMA_T(N, acc, i0, i1, i2, i3, i4) \
    template <> \
    struct WgmmaT<N> { \
        static __device__ __forceinline__ void f16(float (&d)[acc], const uint32_t* a, uint64_t b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.f16.f16 {" SVDQ_L##acc \
                         "}, {" i0 ", " i1 ", " i2 ", " i3 "}, " i4 ", 1, 1, 1, 1;" \
                         : SVDQ_D##acc("+f") \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
        static __device__ __forceinline__ void bf16(float (&d)[acc], const uint32_t* a, uint64_t b) { \
            asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" SVDQ_L##acc \
                         "}, {" i0 ", " i1 ", " i2 ", " i3 "}, " i4 ", 1, 1, 1, 1;" \
                         : SVDQ_D##acc("+f") \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)); \
        } \
    };
SVDQ_WGMMA_T(8, 4, "%4", "%5", "%6", "%7", "%8")
SVDQ_WGMMA_T(64, 32, "%32", "%33", "%34", "%35", "%36")
SVDQ_WGMMA_T(128, 64, "%64", "%65", "%66", "%67", "%68")
#undef SVDQ_WGMMA_T

// The 16-bit product of element type T; A in registers, or a descriptor.
template <class T, int kAcc>
__device__ __forceinline__ void wgmma_16bit(float (&d)[kAcc], const uint32_t (&a)[4], uint64_t b) {
    if constexpr (std::is_same_v<T, __half>) {
        Wgmma<2 * kAcc>::f16(d, a, b);
    } else {
        Wgmma<2 * kAcc>::bf16(d, a, b);
    }
}
template <class T, int kAcc>
__device__ __forceinline__ void wgmma_16bit(float (&d)[kAcc], uint64_t a, uint64_t b) {
    if constexpr (std::is_same_v<T, __half>) {
        WgmmaSs<2 * kAcc>::f16(d, a, b);
    } else {
        WgmmaSs<2 * kAcc>::bf16(d, a, b);
    }
}

#undef SVDQ_P0
#undef SVDQ_P1
#undef SVDQ_P2
#undef SVDQ_P3
#undef SVDQ_P4
#undef SVDQ_P5
#undef SVDQ_P6
#undef SVDQ_P7
#undef SVDQ_E8
#undef SVDQ_E16
#undef SVDQ_L4
#undef SVDQ_D4
#undef SVDQ_L40
#undef SVDQ_D40
#undef SVDQ_L16
#undef SVDQ_D16
#undef SVDQ_L32
#undef SVDQ_D32
#undef SVDQ_L64
#undef SVDQ_D64
#undef SVDQ_L80
#undef SVDQ_D80
#undef SVDQ_L96
#undef SVDQ_D96
#undef SVDQ_L128
#undef SVDQ_D128

}  // namespace svdq::ptx
