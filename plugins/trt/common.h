// What the kinds of op share: words for messages, numbers from plugin fields, comparing shapes, calling the C API.
#pragma once

#include <optional>
#include <string>

#include "log.h"
#include "svdq/contract.h"
#include "trt.h"

namespace svdq::trt {

inline constexpr int64_t kUnknown = -1;  // a dimension not known yet (TensorRT's own sign)
inline constexpr char kExportAgain[] = "Export the model again with this version of svdq_trt.";

std::string type_name(nvinfer1::DataType type);
std::string shape_name(nvinfer1::Dims const& dims);
std::string show(double value);

// f16 and bf16 are the act dtypes.
bool is_act(nvinfer1::DataType type);
// Says that an input, `where`, should have been of one.
Problem no_act(std::string const& where, nvinfer1::DataType type);
nvinfer1::DataType type_of(contract::Dtype dtype, nvinfer1::DataType act);

// The same rank and no known dimension that differs.
bool fits(nvinfer1::Dims const& got, nvinfer1::Dims const& want);

// The first number in a field as a double; nothing when the field holds no number.
std::optional<double> number(nvinfer1::PluginField const& field);

// Reads the `count` fields `known` out of those that TensorRT passes, by name, in any order; unknown names are ignored
// and `values` stay as they are where nothing is passed. `where` starts the message. Returns what is wrong.
std::optional<Problem> read_numbers(std::string const& where, nvinfer1::PluginFieldCollection const* passed,
                                    nvinfer1::PluginField const* known, int32_t count, double* values);

// What TensorRT hands to enqueue().
struct OpCall {
    nvinfer1::DataType act;  // of the first input and the outputs
    void const* const* inputs;
    void* const* outputs;
    void* workspace;  // at least workspace_bytes()
    cudaStream_t stream;
};

// Says that a size has no upper limit.
Problem no_limit(std::string const& where);
// What the C API answered to a launch; nothing when that was SVDQ_OK. `unsupported`: what to do without a kernel.
std::optional<Problem> launch_problem(std::string const& where, svdq_status status, char const* unsupported);

}  // namespace svdq::trt
