// Divisions and multiples of sizes.
#pragma once

#include <stdint.h>

namespace svdq {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t align_up(int64_t v, int64_t to) { return ceil_div(v, to) * to; }

}  // namespace svdq
