#include <limits>

#include "linear.h"

namespace svdq::trt {
namespace {

using contract::Input;
using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr char kKeep16Bit[] = "Leave this linear in 16 bit.";

// Which of a linear's inputs the op's input `index` is, and of which linear.
Input kind_of(int32_t index) {
    return index == contract::kX ? contract::kX : static_cast<Input>((index - 1) % contract::kNumConstants + 1);
}
int32_t linear_of(int32_t index) { return index == contract::kX ? 0 : (index - 1) / contract::kNumConstants; }

std::string input_where(std::string const& where, contract::OpRow const& op, int32_t index) {
    Input const kind = kind_of(index);
    std::string const prefix = kind == contract::kX ? "" : op.linears[linear_of(index)].names.prefix;
    return where + ", input " + prefix + contract::kInputs[kind].name;
}

int64_t divided(int64_t value, int64_t by) { return value < 0 ? kUnknown : value / by; }

int32_t rows_per_feature(contract::OpLinear const& linear) {
    return contract::kActivations[linear.activation].rows_per_feature;
}

// The shape of a constant input; a dimension of a size that is not known yet is unknown.
Dims want_shape(contract::InputRow const& input, contract::FormatRow const& format, LinearSizes const& sizes) {
    Dims dims{};
    for (auto const& [size, divisor] : input.dims) {
        int64_t value = kUnknown;
        switch (size) {
            case contract::Size::kN: value = sizes.n; break;
            case contract::Size::kK: value = sizes.k; break;
            case contract::Size::kR: value = sizes.r; break;
            case contract::Size::kCols: value = format.wscale_cols; break;
            case contract::Size::kLeading:
            case contract::Size::kNone: break;
        }
        bool const is_there = size != contract::Size::kNone && !(size == contract::Size::kCols && value == 1);
        if (is_there) dims.d[dims.nbDims++] = divided(value, divisor);
    }
    return dims;
}

// `value` is positive (or zero where allowed) and a multiple of `multiple`; unknown passes.
std::optional<Problem> check_multiple(std::string const& where, std::string const& letter, int64_t value,
                                      int64_t multiple, int64_t least, int64_t most) {
    if (value == kUnknown || (value >= least && value <= most && value % multiple == 0)) return std::nullopt;
    std::string want = "a multiple of " + std::to_string(multiple) + ", at least " + std::to_string(least);
    if (value > most) want += " and at most " + std::to_string(most);
    return Problem{where, letter + " = " + std::to_string(value), want, kKeep16Bit};
}

// The product of x's leading dimensions; unknown if one is.
int64_t token_count(Dims const& x) {
    int64_t m = 1;
    bool unknown = false;
    for (int32_t i = 0; i + 1 < x.nbDims; ++i) {
        if (x.d[i] < 0)
            unknown = true;
        else if (x.d[i] && m > std::numeric_limits<int64_t>::max() / x.d[i])
            return std::numeric_limits<int64_t>::max();
        else
            m *= x.d[i];
    }
    return unknown ? kUnknown : m;
}

// One linear of the op: x is its own, `shapes` are the op's.
std::optional<Problem> check_linear(std::string const& where, contract::OpRow const& op, int32_t linear, Dims const& x,
                                    Dims const* shapes, LinearSizes& sizes) {
    auto const& format = contract::kFormats[op.format];
    Dims const& qweight = shapes[contract::input_of(linear, contract::kQweight)];
    Dims const& lora_down = shapes[contract::input_of(linear, contract::kLoraDown)];
    if (qweight.nbDims == 2) sizes.n = qweight.d[0];
    if (lora_down.nbDims == 2) sizes.r = lora_down.d[0];
    sizes.k = x.d[x.nbDims - 1];
    if (sizes.k < 0 && qweight.nbDims == 2) sizes.k = qweight.d[1] < 0 ? kUnknown : qweight.d[1] * 2;
    sizes.m = token_count(x);

    constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
    int64_t const n_multiple = contract::kNMultiple * rows_per_feature(op.linears[linear]);
    std::string const prefix = op.linears[linear].names.prefix;
    if (auto p = check_multiple(where, prefix + "K", sizes.k, contract::kKMultiple, contract::kKMultiple, format.max_k))
        return p;
    if (auto p = check_multiple(where, prefix + "N", sizes.n, n_multiple, n_multiple, kMax)) return p;
    if (auto p = check_multiple(where, prefix + "R", sizes.r, contract::kRMultiple, 0, kMax)) return p;
    if (sizes.m > kMax) {
        return Problem{where, "M = " + std::to_string(sizes.m) + " tokens", "at most " + std::to_string(kMax),
                       "Lower the batch or the resolution of the profile."};
    }

    for (int32_t i = contract::kX + 1; i < contract::kNumInputs; ++i) {
        int32_t const index = contract::input_of(linear, static_cast<Input>(i));
        Dims const want = want_shape(contract::kInputs[i], format, sizes);
        if (!fits(shapes[index], want)) {
            return Problem{input_where(where, op, index), shape_name(shapes[index]), shape_name(want), kExportAgain};
        }
    }
    return std::nullopt;
}

}  // namespace

DataType Linear::want_type(Row const& op, int32_t index, DataType act) {
    return type_of(contract::dtype_of(kind_of(index), contract::kFormats[op.format]), act);
}

std::optional<Problem> Linear::check_types(std::string const& where, Row const& op, DataType const* types) {
    DataType const act = types[contract::kX];
    if (!is_act(act)) return no_act(input_where(where, op, contract::kX), act);
    for (int32_t i = 0; i < op.num_inputs(); ++i) {
        DataType const want = want_type(op, i, act);
        if (types[i] != want) {
            return Problem{input_where(where, op, i), type_name(types[i]), type_name(want), kExportAgain};
        }
    }
    return std::nullopt;
}

std::optional<Problem> Linear::check_shapes(std::string const& where, Row const& op, Attributes const&,
                                            Dims const* shapes, Sizes& sizes) {
    Dims x = shapes[contract::kX];
    if (x.nbDims < 2 || x.nbDims > Dims::MAX_DIMS) {
        return Problem{input_where(where, op, contract::kX), shape_name(x), "[..., K] with 2 to 8 dimensions",
                       kExportAgain};
    }
    for (int32_t i = 0; i < op.num_linears; ++i) {
        if (auto problem = check_linear(where, op, i, x, shapes, sizes[i])) return problem;
        x.d[x.nbDims - 1] = divided(sizes[i].n, rows_per_feature(op.linears[i]));
    }
    return std::nullopt;
}

void Linear::output_shapes(Row const& op, Attributes const&, nvinfer1::DimsExprs const* in, nvinfer1::DimsExprs* out,
                           nvinfer1::IExprBuilder& builder) {
    out[0] = in[contract::kX];
    int32_t const last = op.num_linears - 1;
    auto const* n = in[contract::input_of(last, contract::kQweight)].d[0];
    if (int32_t const rows = rows_per_feature(op.linears[last]); rows > 1) {
        n = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *n, *builder.constant(rows));
    }
    out[0].d[out[0].nbDims - 1] = n;
}

}  // namespace svdq::trt
