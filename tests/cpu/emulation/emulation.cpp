// Fibers, barriers and the CUDA runtime calls that the launchers make.
#include "emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>

extern "C" __attribute__((visibility("default"))) int emulation_launches;
int emulation_launches = 0;  // kernels that have run

namespace emulation {

Thread* self = nullptr;
uint3 block = {};
dim3 grid = {};
alignas(128) uint8_t shared_memory[256 * 1024];

namespace {

constexpr size_t kStackBytes = 256 * 1024;

struct Fiber {
    Thread thread;
    ucontext_t start;
    jmp_buf place;  // where it resumes; swapcontext makes system calls for the signal mask
    bool started = false, done = false;
};

struct Warp {
    Lanes in, out;
    int arrived = 0;
    int64_t generation = 0;
};

std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<std::unique_ptr<uint8_t[]>> stacks;
std::vector<Warp> warps;
const std::function<void()>* body = nullptr;
int last_threads = 0;
jmp_buf scheduler;
int alive = 0, at_barrier = 0;
int64_t barrier_generation = 0, events = 0;  // events: anything that may let a waiting fiber go on

void yield() {
    if (_setjmp(fibers[self->id]->place) == 0) _longjmp(scheduler, 1);
}

// Returns when the fiber waits or has ended.
__attribute__((noinline)) void resume(Fiber& f) {
    if (_setjmp(scheduler) != 0) return;
    self = &f.thread;
    if (f.started) _longjmp(f.place, 1);
    f.started = true;
    setcontext(&f.start);
}

void release_barrier_if_complete() {
    if (at_barrier == 0 || at_barrier < alive) return;
    at_barrier = 0;
    ++barrier_generation, ++events;
}

void fiber_main() {
    (*body)();
    fibers[self->id]->done = true;
    --alive, ++events;
    release_barrier_if_complete();
    _longjmp(scheduler, 1);
}

void run_block(int threads) {
    warps.assign((threads + 31) / 32, Warp{});
    alive = threads, at_barrier = 0;
    fibers.clear();
    for (int i = 0; i < threads; ++i) {
        fibers.push_back(std::make_unique<Fiber>());
        Fiber& f = *fibers.back();
        f.thread.id = i;
        f.thread.index = {static_cast<unsigned>(i), 0, 0};
        if (static_cast<int>(stacks.size()) <= i) stacks.push_back(std::make_unique<uint8_t[]>(kStackBytes));
        getcontext(&f.start);
        f.start.uc_stack.ss_sp = stacks[i].get();
        f.start.uc_stack.ss_size = kStackBytes;
        f.start.uc_link = nullptr;
        makecontext(&f.start, fiber_main, 0);
    }
    while (alive > 0) {
        const int64_t before = events;
        for (auto& f : fibers) {
            if (!f->done) resume(*f);
        }
        if (events == before) {
            std::fprintf(stderr, "emulation: every thread waits: a barrier that not all reach\n");
            std::abort();
        }
    }
}

}  // namespace

void block_barrier() {
    const int64_t mine = barrier_generation;
    ++at_barrier, ++events;
    release_barrier_if_complete();
    while (barrier_generation == mine) yield();
}

void warp_collective(const uint32_t* in, int in_words, uint32_t* out, int out_words,
                     const std::function<void(const Lanes&, Lanes&)>& make) {
    Warp& w = warps[self->id / 32];
    const int lane = self->id % 32;
    const int64_t mine = w.generation;
    if (in_words) std::memcpy(w.in[lane], in, 4 * in_words);
    ++events;
    if (++w.arrived == 32) {
        make(w.in, w.out);
        w.arrived = 0;
        ++w.generation;
    }
    while (w.generation == mine) yield();
    if (out_words) std::memcpy(out, w.out[lane], 4 * out_words);
}

cudaError_t run(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& kernel) {
    if (shared_bytes > 227 * 1024 || threads.x > 1024 || blocks.y > 65535) return cudaErrorInvalidConfiguration;
    ++emulation_launches;
    body = &kernel, grid = blocks, last_threads = static_cast<int>(threads.x);
    const bool backwards = std::getenv("EMULATION_BACKWARDS") != nullptr;
    const unsigned count = blocks.x * blocks.y;
    for (unsigned i = 0; i < count; ++i) {
        const unsigned at = backwards ? count - 1 - i : i;
        block = {at % blocks.x, at / blocks.x, 0};
        std::memset(shared_memory, 0xff, sizeof shared_memory);
        run_block(static_cast<int>(threads.x));
    }
    return cudaSuccess;
}

}  // namespace emulation

// The device: compute capability and multiprocessors from the environment, so that tests can choose tiles.
namespace {
int number(const char* name, int otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atoi(text) : otherwise;
}
}  // namespace

extern "C" {
// Grid and threads of the last launch, so that tests know which tile ran and into how many parts K was split.
__attribute__((visibility("default"))) void emulation_last_launch(int* grid_x, int* grid_y, int* threads) {
    *grid_x = static_cast<int>(emulation::grid.x), *grid_y = static_cast<int>(emulation::grid.y);
    *threads = emulation::last_threads;
}
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 8; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 9; break;
        case cudaDevAttrMultiProcessorCount: *value = number("EMULATION_SMS", 128); break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = number("EMULATION_SHARED", 100 << 10); break;
        default: return cudaErrorInvalidValue;
    }
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
}
