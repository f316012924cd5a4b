// manifest.json of an engine folder, and shapes of a call against it, before TensorRT sees them, with the words of
// svdq_trt/runtime/shapes.py.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "safetensors.h"

namespace svdq {

// One input: its dtype by safetensors' name, the range of each size with the one it is tuned for, and what it follows
// from: "batch", "4*height" for multiples of 4, "" for a fixed one. Engines of earlier releases have no axes.
struct Input {
    std::string name, dtype;
    std::vector<int64_t> low, best, high;
    std::vector<std::string> axes;
};

struct Manifest {
    std::string path;
    Json data;
    std::vector<Input> inputs;
};

// Throws Error: missing, not JSON, or of another version.
Manifest read_manifest(std::string const& folder);

// Throws Error unless the shape lies in the input's range.
void check_shape(Input const& input, std::vector<int64_t> const& shape);

// Throws Error unless every tensor lies in its range, has sizes that the graph can run, and agrees with the others.
void check_inputs(std::vector<Input> const& inputs, Tensors const& given);

}  // namespace svdq
