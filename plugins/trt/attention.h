// The kind of op that is attention on packed q, k, v: see linear.h for what each function of a kind does.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <tuple>

#include "common.h"

namespace svdq::trt {

struct Attention {
    using Row = contract::attention::OpRow;
    static constexpr auto const& kRows = contract::attention::kOps;
    static constexpr int32_t kMaxInputs = std::tuple_size<decltype(Row::inputs)>::value;
    static constexpr char kEveryInput[] = "Each op type has inputs of its own; all of them are given always.";
    static int32_t num_inputs(Row const& op) { return op.num_inputs; }
    static int32_t num_outputs(Row const& op) { return op.num_outputs; }

    struct Attributes {
        int32_t heads = 0, kv_heads = 0, kv_part = 0;
        float scale = 0.0f, eps = 0.0f;
    };
    // kUnknown where the shapes do not tell yet.
    struct Sizes {
        int64_t batch = kUnknown;
        int64_t tokens = kUnknown;     // L
        int64_t text = 0;              // T, where the op has another stream
        int64_t head_size = kUnknown;  // D
        int64_t kv_width = 0;          // of a row of kv, where the op has one: P·2·Hkv·D
    };

    static int32_t num_fields(Row const& op) { return op.num_attributes; }
    using Fields = std::array<nvinfer1::PluginField, std::tuple_size<decltype(Row::attributes)>::value>;
    static Fields make_fields(Row const& op, Attributes const* attributes);
    static std::optional<Problem> read_attributes(std::string const& where, Row const& op,
                                                  nvinfer1::PluginFieldCollection const* fields, Attributes& out);

    static nvinfer1::DataType want_type(Row const& op, int32_t index, nvinfer1::DataType act);
    static std::optional<Problem> check_types(std::string const& where, Row const& op, nvinfer1::DataType const* types);
    static std::optional<Problem> check_shapes(std::string const& where, Row const& op, Attributes const& attributes,
                                               nvinfer1::Dims const* shapes, Sizes& sizes);
    static void output_shapes(Row const& op, Attributes const& attributes, nvinfer1::DimsExprs const* in,
                              nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder& builder);

    static std::optional<Problem> workspace_bytes(std::string const& where, Row const& op, Attributes const& attributes,
                                                  Sizes const& sizes, size_t& bytes);
    static std::optional<Problem> run(std::string const& where, Row const& op, Attributes const& attributes,
                                      Sizes const& sizes, OpCall const& call);
};

}  // namespace svdq::trt
