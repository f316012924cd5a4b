#include <cmath>
#include <limits>

#include "attention.h"

namespace svdq::trt {
namespace {

namespace ca = contract::attention;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginFieldType;

using Row = Attention::Row;
using Attributes = Attention::Attributes;
using Sizes = Attention::Sizes;

std::string input_where(std::string const& where, Row const& op, int32_t index) {
    return where + ", input " + ca::kInputs[op.inputs[index]].name;
}

void const* value_of(Attributes const& a, ca::Attribute attribute) {
    switch (attribute) {
        case ca::kHeads: return &a.heads;
        case ca::kKvHeads: return &a.kv_heads;
        case ca::kKvPart: return &a.kv_part;
        case ca::kScale: return &a.scale;
        case ca::kEps: return &a.eps;
    }
    return nullptr;
}

// A whole number that fits an int32.
std::optional<int32_t> whole(double value) {
    bool const fits = value >= 0 && value <= std::numeric_limits<int32_t>::max() && value == std::floor(value);
    return fits ? std::optional<int32_t>(static_cast<int32_t>(value)) : std::nullopt;
}

// Heads in a row of the first input.
int64_t heads_in_row(Row const& op, Attributes const& a) {
    return op.source == ca::Source::kCross ? a.heads : int64_t{a.heads} + 2 * int64_t{a.kv_heads};
}

// The other stream's input, or -1.
int32_t other_input(Row const& op) { return op.position(op.source == ca::Source::kCross ? ca::kKv : ca::kAddedQkv); }

int64_t times(int64_t a, int64_t b) { return a < 0 || b < 0 ? kUnknown : a * b; }
int64_t plus(int64_t a, int64_t b) { return a < 0 || b < 0 ? kUnknown : a + b; }

int64_t value_of(ca::Size size, Row const& op, Attributes const& a, Sizes const& s) {
    switch (size) {
        case ca::Size::kB: return s.batch;
        case ca::Size::kL: return s.tokens;
        case ca::Size::kT: return s.text;
        case ca::Size::kS: return op.source == ca::Source::kJoint ? plus(s.tokens, s.text) : s.tokens;
        case ca::Size::kD: return s.head_size;
        case ca::Size::kQkv: return times(s.head_size, int64_t{a.heads} + 2 * int64_t{a.kv_heads});
        case ca::Size::kQ: return times(s.head_size, a.heads);
        case ca::Size::kKv: return s.kv_width;
        case ca::Size::kNone: break;
    }
    return kUnknown;
}

Dims want_shape(ca::Input input, Row const& op, Attributes const& a, Sizes const& sizes) {
    Dims dims{};
    for (auto const size : ca::kInputs[input].dims) {
        if (size != ca::Size::kNone) dims.d[dims.nbDims++] = value_of(size, op, a, sizes);
    }
    return dims;
}

// D of the first input, and P of the other, whose widths they divide.
std::optional<Problem> check_widths(std::string const& where, Row const& op, Attributes const& a, Dims const* shapes,
                                    Sizes& sizes) {
    int64_t const width = shapes[0].d[2], heads = heads_in_row(op, a);
    if (width >= 0) {
        sizes.head_size = width / heads;
        if (width % heads || sizes.head_size == 0 || sizes.head_size % ca::kDMultiple) {
            return Problem{
                input_where(where, op, 0), shape_name(shapes[0]),
                "rows of " + std::to_string(heads) + " heads, each a multiple of " + std::to_string(ca::kDMultiple),
                kExportAgain};
        }
    }
    if (op.source != ca::Source::kCross) return std::nullopt;
    int32_t const other = other_input(op);
    sizes.kv_width = shapes[other].d[2];
    int64_t const part = times(sizes.head_size, 2 * int64_t{a.kv_heads});
    if (sizes.kv_width < 0 || part < 0) return std::nullopt;
    if (sizes.kv_width % part == 0 && sizes.kv_width / part > a.kv_part) return std::nullopt;
    return Problem{input_where(where, op, other), shape_name(shapes[other]),
                   "rows of parts of " + std::to_string(part) + ", more than kv_part " + std::to_string(a.kv_part),
                   kExportAgain};
}

}  // namespace

Attention::Fields Attention::make_fields(Row const& op, Attributes const* a) {
    Fields fields{};
    for (int32_t i = 0; i < op.num_attributes; ++i) {
        auto const& [name, is_float] = ca::kAttributes[op.attributes[i]];
        fields[i] = {name, a ? value_of(*a, op.attributes[i]) : nullptr,
                     is_float ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1};
    }
    return fields;
}

std::optional<Problem> Attention::read_attributes(std::string const& where, Row const& op,
                                                  nvinfer1::PluginFieldCollection const* fields, Attributes& out) {
    Fields const known = make_fields(op, nullptr);
    std::array<double, known.size()> values{};
    if (auto p = read_numbers(where, fields, known.data(), op.num_attributes, values.data())) return p;
    for (int32_t i = 0; i < op.num_attributes; ++i) {
        auto const& [name, is_float] = ca::kAttributes[op.attributes[i]];
        auto const count = whole(values[i]);
        if (is_float ? !(std::isfinite(values[i]) && values[i] >= 0) : !count) {
            return Problem{where, name + (" " + show(values[i])),
                           is_float ? "a finite number, at least 0" : "a whole number, at least 0", kExportAgain};
        }
        switch (op.attributes[i]) {
            case ca::kHeads: out.heads = *count; break;
            case ca::kKvHeads: out.kv_heads = *count; break;
            case ca::kKvPart: out.kv_part = *count; break;
            case ca::kScale: out.scale = static_cast<float>(values[i]); break;
            case ca::kEps: out.eps = static_cast<float>(values[i]); break;
        }
    }
    if (!(out.scale > 0)) return Problem{where, "scale " + show(out.scale), "a number above 0", kExportAgain};
    if (out.heads > 0 && out.kv_heads > 0 && out.heads % out.kv_heads == 0) return std::nullopt;
    return Problem{where, "heads " + std::to_string(out.heads) + " and kv_heads " + std::to_string(out.kv_heads),
                   "both at least 1, and heads a multiple of kv_heads", kExportAgain};
}

DataType Attention::want_type(Row const& op, int32_t index, DataType act) {
    return type_of(ca::kInputs[op.inputs[index]].dtype, act);
}

std::optional<Problem> Attention::check_types(std::string const& where, Row const& op, DataType const* types) {
    if (!is_act(types[0])) return no_act(input_where(where, op, 0), types[0]);
    for (int32_t i = 0; i < op.num_inputs; ++i) {
        DataType const want = want_type(op, i, types[0]);
        if (types[i] != want) {
            return Problem{input_where(where, op, i), type_name(types[i]), type_name(want), kExportAgain};
        }
    }
    return std::nullopt;
}

std::optional<Problem> Attention::check_shapes(std::string const& where, Row const& op, Attributes const& a,
                                               Dims const* shapes, Sizes& sizes) {
    int32_t const other = other_input(op);
    for (int32_t const i : {0, other}) {
        if (i >= 0 && shapes[i].nbDims != 3) {
            return Problem{input_where(where, op, i), shape_name(shapes[i]), "3 dimensions: batch, tokens, channels",
                           kExportAgain};
        }
    }
    sizes.batch = shapes[0].d[0] < 0 && other >= 0 ? shapes[other].d[0] : shapes[0].d[0];
    sizes.tokens = shapes[0].d[1];
    if (other >= 0) sizes.text = shapes[other].d[1];
    if (auto p = check_widths(where, op, a, shapes, sizes)) return p;
    for (int32_t i = 0; i < op.num_inputs; ++i) {
        Dims const want = want_shape(op.inputs[i], op, a, sizes);
        if (!fits(shapes[i], want)) {
            return Problem{input_where(where, op, i), shape_name(shapes[i]), shape_name(want), kExportAgain};
        }
    }
    constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
    if (sizes.batch > kMax || plus(sizes.tokens, sizes.text) > kMax) {
        return Problem{where, shape_name(shapes[0]), "at most " + std::to_string(kMax) + " tokens",
                       "Lower the batch or the resolution of the profile."};
    }
    return std::nullopt;
}

void Attention::output_shapes(Row const& op, Attributes const& a, nvinfer1::DimsExprs const* in,
                              nvinfer1::DimsExprs* out, nvinfer1::IExprBuilder& builder) {
    using nvinfer1::DimensionOperation;
    out[0] = in[0];
    if (op.num_outputs > 1) out[1] = in[other_input(op)];
    auto const* head =
        builder.operation(DimensionOperation::kFLOOR_DIV, *in[0].d[2], *builder.constant(heads_in_row(op, a)));
    auto const* width = builder.operation(DimensionOperation::kPROD, *head, *builder.constant(a.heads));
    for (int32_t i = 0; i < op.num_outputs; ++i) out[i].d[2] = width;
}

}  // namespace svdq::trt
