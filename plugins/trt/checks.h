// What a node's inputs must look like: pure functions over shapes and dtypes, used in both phases.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "log.h"
#include "svdq/contract.h"
#include "trt.h"

namespace svdq::trt {

inline constexpr int64_t kUnknown = -1;  // a dimension not known yet (TensorRT's own sign)

// The sizes of one linear; kUnknown where the shapes do not tell yet.
struct Sizes {
    int64_t m = kUnknown;
    int64_t n = kUnknown;
    int64_t k = kUnknown;
    int64_t r = kUnknown;
};

using OpSizes = std::array<Sizes, contract::kMaxLinears>;  // as many as the op has linears are in use

inline constexpr int32_t kMaxInputs = 1 + contract::kMaxLinears * contract::kNumConstants;

// The dtype that input `index` must have when x has dtype `act`.
nvinfer1::DataType want_type(contract::OpRow const& op, int32_t index, nvinfer1::DataType act);

// x must be f16 or bf16, and every other input what the format asks. `types` has an entry for each input.
std::optional<Problem> check_types(std::string const& where, contract::OpRow const& op,
                                   nvinfer1::DataType const* types);

// Compares the shapes of all inputs with the contract and fills `sizes`. Unknown dimensions are not judged, so
// the same function serves a network with dynamic axes, a profile's limits, and the shapes of a run.
std::optional<Problem> check_shapes(std::string const& where, contract::OpRow const& op, nvinfer1::Dims const* shapes,
                                    OpSizes& sizes);

}  // namespace svdq::trt
