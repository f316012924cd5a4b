#include "dispatch.h"

#include <algorithm>

#include "gemv/gemv.h"
#if SVDQ_WITH_SM90
#include "sm90/w4a8.h"
#endif

namespace svdq {
namespace {

// One compiled target of the build option SVDQ_ARCHS, written by CMake as {89,0},{90,'a'},...
struct Target {
    int sm;
    char suffix;  // 0: also later minor versions; 'f': the family, likewise; 'a': this chip only
};
constexpr Target kTargets[] = {SVDQ_TARGETS};

bool runs_on(const Target& t, int sm) {
    if (t.suffix == 'a') return t.sm == sm;
    return t.sm / 10 == sm / 10 && t.sm <= sm;
}

}  // namespace

bool has_kernel(int32_t format, int32_t dtype, int32_t sm) {
    if (format < SVDQ_FORMAT_INT4 || format > SVDQ_FORMAT_W4A16) return false;
    if (dtype != SVDQ_F16 && dtype != SVDQ_BF16) return false;
    for (const Target& t : kTargets)
        if (runs_on(t, sm)) return true;
    return false;
}

size_t workspace_bytes(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r) {
    size_t bytes = workspace_layout(format, m, n, k, r).bytes;
#if SVDQ_WITH_SM90
    if (format == SVDQ_FORMAT_W4A8) bytes = std::max(bytes, sm90::workspace_bytes_w4a8(m, n, k, r));
#endif
    return bytes;
}

LauncherPair pick_launchers(const LinearArgs& args, int32_t sm) {
    switch (args.p.format) {
        case SVDQ_FORMAT_INT4: return {sm80::quantize_int4, sm80::gemm_int4};
        case SVDQ_FORMAT_NVFP4: return {sm80::quantize_nvfp4, sm80::gemm_nvfp4};
        case SVDQ_FORMAT_W4A16:
            if (args.p.m <= gemv::kMaxTokens) return {gemv::lora_down, gemv::gemv_w4a16};
            return {sm80::quantize_w4a16, sm80::gemm_w4a16};
        default: break;
    }
#if SVDQ_WITH_SM90
    // wgmma. Its workspace has an order of its own, so it brings both kernels.
    if (sm == 90 && sm90::can_run_w4a8(args.p))
        return {[](const LinearArgs& a, cudaStream_t s) { return sm90::launch_quantize_w4a8(a.p, s); },
                [](const LinearArgs& a, cudaStream_t s) { return sm90::launch_gemm_w4a8(a.p, s); }};
#endif
    (void)sm;
    return {sm80::quantize_w4a8, sm80::gemm_w4a8};
}

HiddenLauncher pick_hidden_launcher(int32_t format) {
    return format == SVDQ_FORMAT_INT4 ? sm80::gemm_quantize_int4 : sm80::gemm_quantize_nvfp4;
}

}  // namespace svdq
