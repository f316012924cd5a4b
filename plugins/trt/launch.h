// From a node to the C API: what its sizes need of workspace, and its launch.
#pragma once

#include <optional>
#include <string>

#include "attributes.h"
#include "checks.h"
#include "log.h"
#include "svdq/contract.h"
#include "trt.h"

namespace svdq::trt {

// Bytes of workspace for sizes that are all known.
std::optional<Problem> workspace_bytes(std::string const& where, contract::OpRow const& op,
                                       OpSizes const& sizes, size_t& bytes);

// What TensorRT hands to enqueue().
struct Launch {
    nvinfer1::DataType act;  // of x and the output
    void const* const* inputs;
    void* output;
    void* workspace;  // at least workspace_bytes()
    cudaStream_t stream;
};

std::optional<Problem> launch(std::string const& where, contract::OpRow const& op, Attributes const& attributes,
                              OpSizes const& sizes, Launch const& call);

}  // namespace svdq::trt
