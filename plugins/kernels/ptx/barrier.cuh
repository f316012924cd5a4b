// Barriers: mbarriers in shared memory, a cluster's, a CTA's named ones; and programmatic dependent launch, the barrier
// between kernels. sm_90, but for named barriers.
#pragma once

#include "base.cuh"

#ifndef SVDQ_EMULATION
namespace svdq::ptx {

// ---- mbarrier -------------------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(uint32_t bar, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

// Makes initialized barriers visible to the async proxy and to the other CTAs of the cluster.
__device__ __forceinline__ void fence_mbarrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive_expect(uint32_t bar, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}

// `parity`: of the phase that is to be over.
__device__ __forceinline__ void mbarrier_wait(uint32_t bar, uint32_t parity) {
    asm volatile(
        "{\n .reg .pred done;\n"
        "LAB_WAIT:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        " @!done bra LAB_WAIT;\n}" ::"r"(bar),
        "r"(parity)
        : "memory");
}

// What this thread did to shared memory so far comes before what a copy by tensor map, ordered behind it, does.
__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- all threads of a cluster -----------------------------------------------------------------------------------

__device__ __forceinline__ void cluster_arrive() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// ---- some threads of a CTA ----------------------------------------------------------------------------------------

// Barrier `id` + `index` among `threads` threads. Id: the kernel's enum of its barriers; 0 is __syncthreads().
template <class Id>
__device__ __forceinline__ void named_barrier_sync(Id id, uint32_t threads, uint32_t index = 0) {
    asm volatile("bar.sync %0, %1;" ::"r"(static_cast<uint32_t>(id) + index), "r"(threads) : "memory");
}

// Counts towards a named_barrier_sync() without waiting.
template <class Id>
__device__ __forceinline__ void named_barrier_arrive(Id id, uint32_t threads, uint32_t index = 0) {
    asm volatile("bar.arrive %0, %1;" ::"r"(static_cast<uint32_t>(id) + index), "r"(threads) : "memory");
}

// ---- programmatic dependent launch (nothing below sm_90) ------------------------------------------------------------

// Lets the next kernel of the stream start, if it was launched so. That one still waits before it reads.
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

}  // namespace svdq::ptx
#endif
