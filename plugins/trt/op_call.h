// From a node to the C API: the workspace that its sizes need, and the call.
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
std::optional<Problem> workspace_bytes(std::string const& where, contract::OpRow const& op, OpSizes const& sizes,
                                       size_t& bytes);

// What TensorRT hands to enqueue().
struct OpCall {
    nvinfer1::DataType act;  // of x and the output
    void const* const* inputs;
    void* output;
    void* workspace;  // at least workspace_bytes()
    cudaStream_t stream;
};

std::optional<Problem> run_op(std::string const& where, contract::OpRow const& op, Attributes const& attributes,
                              OpSizes const& sizes, OpCall const& call);

}  // namespace svdq::trt
