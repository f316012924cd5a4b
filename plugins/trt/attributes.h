// The numeric attributes of a node: read from plugin fields, checked, written back for the plan.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "log.h"
#include "svdq/contract.h"
#include "trt.h"

namespace svdq::trt {

struct Attributes {
    int32_t group_size = 0;  // 0 until read: absent means the format's own group
    int32_t act_unsigned = contract::kActUnsignedDefault;
    float act_shift = contract::kActShiftDefault;
};

inline constexpr int32_t kNumAttributes = 3;
using FieldArray = std::array<nvinfer1::PluginField, kNumAttributes>;

// Fields that point into `attributes`, which must outlive them. A null pointer gives names and types only.
FieldArray make_fields(Attributes const* attributes);

// Reads the fields that TensorRT passes, by name, in any order; unknown names are ignored.
// `where` starts the message. Returns what is wrong, or nothing and fills `out`.
std::optional<Problem> read_attributes(std::string const& where, contract::OpRow const& op,
                                       nvinfer1::PluginFieldCollection const* fields, Attributes& out);

}  // namespace svdq::trt
