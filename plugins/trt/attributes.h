// The numeric attributes of a node: read from plugin fields, checked, written back for the plan.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "log.h"
#include "svdq/contract.h"
#include "trt.h"

namespace svdq::trt {

struct LinearAttributes {
    int32_t act_unsigned = contract::kActUnsignedDefault;
    float act_shift = contract::kActShiftDefault;
};

struct Attributes {
    int32_t group_size = 0;  // 0 until read: absent means the format's own group
    std::array<LinearAttributes, contract::kMaxLinears> linears;
};

// group_size, then act_unsigned and act_shift of each linear: those of linear i begin at num_attributes(i).
constexpr int32_t num_attributes(int32_t num_linears) { return 1 + 2 * num_linears; }
using FieldArray = std::array<nvinfer1::PluginField, num_attributes(contract::kMaxLinears)>;

// Fields that point into `attributes`, which must outlive them; num_attributes() of the op are in use. A null
// pointer gives names and types only.
FieldArray make_fields(contract::OpRow const& op, Attributes const* attributes);

// Reads the fields that TensorRT passes, by name, in any order; unknown names are ignored.
// `where` starts the message. Returns what is wrong, or nothing and fills `out`.
std::optional<Problem> read_attributes(std::string const& where, contract::OpRow const& op,
                                       nvinfer1::PluginFieldCollection const* fields, Attributes& out);

}  // namespace svdq::trt
