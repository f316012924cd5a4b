#include "common.h"

#include <cstdio>
#include <cstring>

namespace svdq::trt {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

std::string type_name(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return "float32";
        case DataType::kHALF: return "float16";
        case DataType::kBF16: return "bfloat16";
        case DataType::kINT8: return "int8";
        case DataType::kUINT8: return "uint8";
        case DataType::kINT32: return "int32";
        case DataType::kINT64: return "int64";
        case DataType::kFP8: return "float8";
        case DataType::kINT4: return "int4";
        case DataType::kFP4: return "float4";
        case DataType::kBOOL: return "bool";
        default: return "dtype " + std::to_string(static_cast<int32_t>(type));
    }
}

std::string shape_name(Dims const& dims) {
    std::string text = "[";
    for (int32_t i = 0; i < dims.nbDims && i < Dims::MAX_DIMS; ++i) {
        if (i) text += ", ";
        text += dims.d[i] < 0 ? "?" : std::to_string(dims.d[i]);
    }
    return text + "]";
}

std::string show(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}

bool is_act(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

Problem no_act(std::string const& where, DataType type) {
    return {where, type_name(type), "float16 or bfloat16", "Export the model in float16 or bfloat16."};
}

DataType type_of(contract::Dtype dtype, DataType act) {
    switch (dtype) {
        case contract::Dtype::kInt8: return DataType::kINT8;
        case contract::Dtype::kF32: return DataType::kFLOAT;
        default: return act;
    }
}

bool fits(Dims const& got, Dims const& want) {
    if (got.nbDims != want.nbDims) return false;
    for (int32_t i = 0; i < got.nbDims; ++i) {
        if (got.d[i] >= 0 && want.d[i] >= 0 && got.d[i] != want.d[i]) return false;
    }
    return true;
}

std::optional<double> number(PluginField const& field) {
    if (field.data == nullptr || field.length != 1) return std::nullopt;
    switch (field.type) {
        case PluginFieldType::kINT32: return *static_cast<int32_t const*>(field.data);
        case PluginFieldType::kINT64: return static_cast<double>(*static_cast<int64_t const*>(field.data));
        case PluginFieldType::kFLOAT32: return *static_cast<float const*>(field.data);
        case PluginFieldType::kFLOAT64: return *static_cast<double const*>(field.data);
        default: return std::nullopt;
    }
}

std::optional<Problem> read_numbers(std::string const& where, nvinfer1::PluginFieldCollection const* passed,
                                    PluginField const* known, int32_t count, double* values) {
    int32_t const given = passed && passed->fields ? passed->nbFields : 0;
    for (int32_t i = 0; i < given; ++i) {
        PluginField const& field = passed->fields[i];
        for (int32_t j = 0; j < count; ++j) {
            if (field.name == nullptr || std::strcmp(field.name, known[j].name) != 0) continue;
            auto const value = number(field);
            if (!value) {
                return Problem{where, std::string("attribute ") + known[j].name + " is no number", "one int or float",
                               kExportAgain};
            }
            values[j] = *value;
        }
    }
    return std::nullopt;
}

Problem no_limit(std::string const& where) {
    return {where, "sizes without an upper limit", "an optimization profile with a maximum for every axis",
            "Give the engine builder a profile with min, opt and max for every input."};
}

std::optional<Problem> launch_problem(std::string const& where, svdq_status status, char const* unsupported) {
    if (status == SVDQ_OK) return std::nullopt;
    std::string got = svdq_status_string(status);
    if (status == SVDQ_CUDA) got += " (CUDA error " + std::to_string(svdq_last_cuda_error()) + ")";
    return Problem{where, got, "a launch that succeeds", status == SVDQ_UNSUPPORTED ? unsupported : ""};
}

}  // namespace svdq::trt
