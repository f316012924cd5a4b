// Shapes of a call against the manifest, before TensorRT sees them, with the words of svdq_trt/runtime/shapes.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "safetensors.h"

namespace svdq {

// One input of the manifest: the range of each size, and what it follows from: "batch", "4*height" for multiples of
// 4, "" for a fixed one. Engines of earlier releases have no axes.
struct Input {
    std::string name;
    std::vector<int64_t> low, high;
    std::vector<std::string> axes;
};

// The inputs that a manifest lists. Throws Error.
std::vector<Input> read_inputs(Json const& manifest);

// Throws Error unless every tensor lies in its range, has sizes that the graph can run, and agrees with the others.
void check_inputs(std::vector<Input> const& inputs, Tensors const& given);

}  // namespace svdq
