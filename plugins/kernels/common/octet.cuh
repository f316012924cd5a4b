// Eight consecutive 16-bit elements: what a lane loads at once.
#pragma once

#include "../ptx/ld_st.cuh"
#include "numerics.cuh"

namespace svdq {

// A lane's 8 consecutive elements, as 4 pairs.
struct Octet {
    uint32_t pair[4];
};

// Zeros where not `valid`; nothing is read then. kInPlace: by a load that stays where it stands, between other kinds of
// copies and after waits.
template <bool kInPlace = false>
__device__ __forceinline__ Octet load_octet(const uint16_t* p, bool valid) {
    Octet o = {{0, 0, 0, 0}};
    if (valid) {
        const uint4 v = kInPlace ? ptx::load_global_16(p) : __ldg(reinterpret_cast<const uint4*>(p));
        o.pair[0] = v.x, o.pair[1] = v.y, o.pair[2] = v.z, o.pair[3] = v.w;
    }
    return o;
}

template <class T>
__device__ __forceinline__ void smooth(Octet& x, const Octet& mul, float shift) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x.pair[i] = smooth_pair<T>(x.pair[i], mul.pair[i], shift);
}

// Largest |bits| so far, separately for low and high halves.
__device__ __forceinline__ uint32_t max_bits(uint32_t so_far, const Octet& o) {
#pragma unroll
    for (int i = 0; i < 4; ++i) so_far = __vmaxu2(so_far, o.pair[i] & 0x7fff7fffu);
    return so_far;
}

__device__ __forceinline__ uint32_t max_halves(uint32_t v) { return max(v & 0xffffu, v >> 16); }

// Maximum over the 2 (kLanes = 2) or 4 lanes of a quad that share a group or row.
template <int kLanes>
__device__ __forceinline__ uint32_t max_lanes(uint32_t v) {
    v = max(v, __shfl_xor_sync(0xffffffffu, v, 1));
    if (kLanes == 4) v = max(v, __shfl_xor_sync(0xffffffffu, v, 2));
    return v;
}

// w4a16: elements (j, j + 4) become pair j, the partner of the weight's nibbles j and j + 4.
__device__ __forceinline__ Octet pair_up(const Octet& x) {
    Octet o;
#pragma unroll
    for (int j = 0; j < 4; ++j) o.pair[j] = __byte_perm(x.pair[j / 2], x.pair[j / 2 + 2], j % 2 ? 0x7632 : 0x5410);
    return o;
}

}  // namespace svdq
