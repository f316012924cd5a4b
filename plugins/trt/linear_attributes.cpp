#include <cmath>

#include "linear.h"

namespace svdq::trt {
namespace {

using nvinfer1::PluginFieldType;

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

Linear::Fields Linear::make_fields(Row const& op, Attributes const* a) {
    Fields fields{};
    fields[0] = {contract::kGroupSizeName, a ? &a->group_size : nullptr, PluginFieldType::kINT32, 1};
    for (int32_t i = 0; i < op.num_linears; ++i) {
        auto const& names = op.linears[i].names;
        auto const* own = a ? &a->linears[i] : nullptr;
        fields[first_field(i)] = {names.act_unsigned, own ? &own->act_unsigned : nullptr, PluginFieldType::kINT32, 1};
        fields[first_field(i) + 1] = {names.act_shift, own ? &own->act_shift : nullptr, PluginFieldType::kFLOAT32, 1};
    }
    return fields;
}

std::optional<Problem> Linear::read_attributes(std::string const& where, Row const& op,
                                               nvinfer1::PluginFieldCollection const* fields, Attributes& out) {
    auto const& format = contract::kFormats[op.format];
    Fields const known = make_fields(op, nullptr);
    std::array<double, known.size()> values{};
    values[0] = format.weight_group;
    for (int32_t i = 0; i < op.num_linears; ++i) {
        values[first_field(i)] = contract::kActUnsignedDefault;
        values[first_field(i) + 1] = contract::kActShiftDefault;
    }
    if (auto p = read_numbers(where, fields, known.data(), num_fields(op), values.data())) return p;

    if (values[0] != format.weight_group) {
        return Problem{where, "group_size " + show(values[0]), std::to_string(format.weight_group), kExportAgain};
    }
    out.group_size = static_cast<int32_t>(values[0]);
    for (int32_t i = 0; i < op.num_linears; ++i) {
        double const act_unsigned = values[first_field(i)], act_shift = values[first_field(i) + 1];
        if (auto p = check_linear(where, format, op.linears[i].names, act_unsigned, act_shift)) return p;
        out.linears[i] = {static_cast<int32_t>(act_unsigned), static_cast<float>(act_shift)};
    }
    return std::nullopt;
}

}  // namespace svdq::trt
