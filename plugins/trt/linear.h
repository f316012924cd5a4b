// The kind of op that is one linear, or two in a row: its rows of the contract, attributes, sizes, and the call.
//
// A kind is what SvdqPlugin<Kind> is made from; all of it is pure functions, used in both phases.
#pragma once

#include <array>
#include <optional>
#include <string>

#include "common.h"

namespace svdq::trt {

struct LinearAttributes {
    int32_t act_unsigned = contract::kActUnsignedDefault;
    float act_shift = contract::kActShiftDefault;
};

// The sizes of one linear; kUnknown where the shapes do not tell yet.
struct LinearSizes {
    int64_t m = kUnknown;
    int64_t n = kUnknown;
    int64_t k = kUnknown;
    int64_t r = kUnknown;
};

struct Linear {
    using Row = contract::OpRow;
    static constexpr auto const& kRows = contract::kOps;
    static constexpr int32_t kMaxInputs = 1 + contract::kMaxLinears * contract::kNumConstants;
    static constexpr char kEveryInput[] =
        "Every input is given always: zeros for no bias, R = 0 for no low-rank branch.";
    static int32_t num_inputs(Row const& op) { return op.num_inputs(); }
    static int32_t num_outputs(Row const&) { return 1; }

    struct Attributes {
        int32_t group_size = 0;  // 0 until read: absent means the format's own group
        std::array<LinearAttributes, contract::kMaxLinears> linears;
    };
    using Sizes = std::array<LinearSizes, contract::kMaxLinears>;  // as many as the op has linears are in use

    // group_size, then act_unsigned and act_shift of each linear: those of linear i begin at first_field(i).
    static constexpr int32_t first_field(int32_t linear) { return 1 + 2 * linear; }
    static int32_t num_fields(Row const& op) { return first_field(op.num_linears); }
    using Fields = std::array<nvinfer1::PluginField, 1 + 2 * contract::kMaxLinears>;

    // Fields that point into `attributes`, which must outlive them; num_fields() are in use. A null pointer gives names
    // and types only.
    static Fields make_fields(Row const& op, Attributes const* attributes);

    // Reads the fields that TensorRT passes. `where` starts the message. Returns what is wrong, or nothing and fills
    // `out`.
    static std::optional<Problem> read_attributes(std::string const& where, Row const& op,
                                                  nvinfer1::PluginFieldCollection const* fields, Attributes& out);

    // The dtype that input `index` must have when the first has dtype `act`.
    static nvinfer1::DataType want_type(Row const& op, int32_t index, nvinfer1::DataType act);

    // The first input must be f16 or bf16, and every other what the op asks. `types` has an entry for each input.
    static std::optional<Problem> check_types(std::string const& where, Row const& op, nvinfer1::DataType const* types);

    // Compares the shapes of all inputs with the contract and fills `sizes`. Unknown dimensions are not judged, so
    // the same function serves a network with dynamic axes, a profile's limits, and the shapes of a run.
    static std::optional<Problem> check_shapes(std::string const& where, Row const& op, Attributes const& attributes,
                                               nvinfer1::Dims const* shapes, Sizes& sizes);

    // The shapes of the outputs, from inputs that check_shapes() took.
    static void output_shapes(Row const& op, Attributes const& attributes, nvinfer1::DimsExprs const* in,
                              nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder& builder);

    // Bytes of workspace for sizes that are all known.
    static std::optional<Problem> workspace_bytes(std::string const& where, Row const& op, Attributes const& attributes,
                                                  Sizes const& sizes, size_t& bytes);

    static std::optional<Problem> run(std::string const& where, Row const& op, Attributes const& attributes,
                                      Sizes const& sizes, OpCall const& call);
};

}  // namespace svdq::trt
