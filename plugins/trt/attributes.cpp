#include "attributes.h"

#include <cmath>
#include <cstdio>
#include <cstring>

namespace svdq::trt {
namespace {

using nvinfer1::PluginField;
using nvinfer1::PluginFieldType;

// The first number in a field as a double; nothing when the field holds no number.
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

std::string show(double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%.9g", value);
    return text;
}

constexpr char kExportAgain[] = "Export the model again with this version of svdq_trt.";

std::optional<Problem> check_linear(std::string const& where, contract::FormatRow const& format,
                                    contract::LinearNames const& names, double act_unsigned, double act_shift) {
    std::string const got = names.act_unsigned + (" " + show(act_unsigned));
    if (act_unsigned != 0 && act_unsigned != 1) return Problem{where, got, "0 or 1", kExportAgain};
    if (act_unsigned == 1 && !format.has_unsigned)
        return Problem{where, got, "0, because only int4 has unsigned codes", kExportAgain};
    if (!std::isfinite(act_shift) || (act_shift != 0 && act_unsigned == 0)) {
        return Problem{where, names.act_shift + (" " + show(act_shift)),
                       std::string("a finite number, and 0 where ") + names.act_unsigned + " is 0", kExportAgain};
    }
    return std::nullopt;
}

}  // namespace

FieldArray make_fields(contract::OpRow const& op, Attributes const* a) {
    FieldArray fields{};
    fields[0] = {contract::kGroupSizeName, a ? &a->group_size : nullptr, PluginFieldType::kINT32, 1};
    for (int32_t i = 0; i < op.num_linears; ++i) {
        auto const& names = op.linears[i].names;
        auto const* own = a ? &a->linears[i] : nullptr;
        fields[num_attributes(i)] = {names.act_unsigned, own ? &own->act_unsigned : nullptr, PluginFieldType::kINT32,
                                     1};
        fields[num_attributes(i) + 1] = {names.act_shift, own ? &own->act_shift : nullptr, PluginFieldType::kFLOAT32,
                                         1};
    }
    return fields;
}

std::optional<Problem> read_attributes(std::string const& where, contract::OpRow const& op,
                                       nvinfer1::PluginFieldCollection const* fields, Attributes& out) {
    auto const& format = contract::kFormats[op.format];
    FieldArray const known = make_fields(op, nullptr);
    std::array<double, known.size()> values{};
    values[0] = format.weight_group;
    for (int32_t i = 0; i < op.num_linears; ++i) {
        values[num_attributes(i)] = contract::kActUnsignedDefault;
        values[num_attributes(i) + 1] = contract::kActShiftDefault;
    }

    int32_t const count = fields && fields->fields ? fields->nbFields : 0;
    for (int32_t i = 0; i < count; ++i) {
        PluginField const& field = fields->fields[i];
        for (int32_t j = 0; j < num_attributes(op.num_linears); ++j) {
            if (field.name == nullptr || std::strcmp(field.name, known[j].name) != 0) continue;
            auto const value = number(field);
            if (!value) {
                return Problem{where, std::string("attribute ") + known[j].name + " is no number", "one int or float",
                               kExportAgain};
            }
            values[j] = *value;
        }
    }

    if (values[0] != format.weight_group) {
        return Problem{where, "group_size " + show(values[0]), std::to_string(format.weight_group), kExportAgain};
    }
    out.group_size = static_cast<int32_t>(values[0]);
    for (int32_t i = 0; i < op.num_linears; ++i) {
        double const act_unsigned = values[num_attributes(i)], act_shift = values[num_attributes(i) + 1];
        if (auto p = check_linear(where, format, op.linears[i].names, act_unsigned, act_shift)) return p;
        out.linears[i] = {static_cast<int32_t>(act_unsigned), static_cast<float>(act_shift)};
    }
    return std::nullopt;
}

}  // namespace svdq::trt
