#include "registry.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "gemv/gemv.h"
#include "portable/kernels.h"
#include "sm90/w4a8.h"

namespace svdq {
namespace {

constexpr int32_t kAnyLater = std::numeric_limits<int32_t>::max();
bool always(const svdq_linear_params&) { return true; }

// By format; within one, the first row that fits is taken. An architecture with kernels of its own is a folder smNN of
// this one, compiled for it alone where SVDQ_ARCHS names it (plugins/CMakeLists.txt), and a row, guarded by
// SVDQ_WITH_SMNN.
constexpr Kernels kTable[] = {
    {SVDQ_FORMAT_INT4, 80, kAnyLater, always, portable::workspace<SVDQ_FORMAT_INT4>, portable::quantize_int4,
     portable::gemm_int4, &portable::kHiddenInt4},
#if SVDQ_WITH_SM90
    {SVDQ_FORMAT_W4A8, 90, 90, sm90::can_run_w4a8, sm90::workspace_w4a8, sm90::quantize_w4a8, sm90::gemm_w4a8, nullptr},
#endif
    {SVDQ_FORMAT_W4A8, 80, kAnyLater, always, portable::workspace<SVDQ_FORMAT_W4A8>, portable::quantize_w4a8,
     portable::gemm_w4a8, nullptr},
    {SVDQ_FORMAT_NVFP4, 80, kAnyLater, always, portable::workspace<SVDQ_FORMAT_NVFP4>, portable::quantize_nvfp4,
     portable::gemm_nvfp4, &portable::kHiddenNvfp4},
    {SVDQ_FORMAT_W4A16, 80, kAnyLater, gemv::can_run, portable::workspace<SVDQ_FORMAT_W4A16>, gemv::lora_down,
     gemv::gemv_w4a16, nullptr},
    {SVDQ_FORMAT_W4A16, 80, kAnyLater, always, portable::workspace<SVDQ_FORMAT_W4A16>, portable::quantize_w4a16,
     portable::gemm_w4a16, nullptr},
};

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

KernelRange kernels_of(int32_t format) {
    const auto is = [=](const Kernels& row) { return row.format == format; };
    const Kernels* const first = std::find_if(std::begin(kTable), std::end(kTable), is);
    return {first, std::find_if_not(first, std::end(kTable), is)};
}

bool has_target(int32_t sm) {
    return std::any_of(std::begin(kTargets), std::end(kTargets), [=](const Target& t) { return runs_on(t, sm); });
}

bool has_kernel(int32_t format, int32_t dtype, int32_t sm) {
    if (format < SVDQ_FORMAT_INT4 || format > SVDQ_FORMAT_W4A16) return false;
    if (dtype != SVDQ_F16 && dtype != SVDQ_BF16) return false;
    return has_target(sm);
}

size_t workspace_bytes(int32_t format, int32_t m, int32_t n, int32_t k, int32_t r) {
    size_t bytes = 0;
    for (const Kernels& row : kernels_of(format)) bytes = std::max(bytes, row.workspace(m, n, k, r).bytes);
    return bytes;
}

const Kernels& pick_kernels(const svdq_linear_params& p, int32_t sm) {
    const KernelRange rows = kernels_of(p.format);
    return *std::find_if(rows.begin(), rows.end(),
                         [&](const Kernels& row) { return row.min_sm <= sm && sm <= row.max_sm && row.can_run(p); });
}

}  // namespace svdq
