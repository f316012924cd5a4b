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

}  // namespace

FieldArray make_fields(Attributes const* a) {
    return {{
        {contract::kGroupSizeName, a ? &a->group_size : nullptr, PluginFieldType::kINT32, 1},
        {contract::kActUnsignedName, a ? &a->act_unsigned : nullptr, PluginFieldType::kINT32, 1},
        {contract::kActShiftName, a ? &a->act_shift : nullptr, PluginFieldType::kFLOAT32, 1},
    }};
}

std::optional<Problem> read_attributes(std::string const& where, contract::OpRow const& op,
                                       nvinfer1::PluginFieldCollection const* fields, Attributes& out) {
    auto const& format = contract::kFormats[op.format];
    double group_size = format.weight_group;
    double act_unsigned = contract::kActUnsignedDefault;
    double act_shift = contract::kActShiftDefault;
    struct Slot {
        char const* name;
        double* value;
    };
    Slot const slots[kNumAttributes] = {{contract::kGroupSizeName, &group_size},
                                        {contract::kActUnsignedName, &act_unsigned},
                                        {contract::kActShiftName, &act_shift}};

    int32_t const count = fields && fields->fields ? fields->nbFields : 0;
    for (int32_t i = 0; i < count; ++i) {
        PluginField const& field = fields->fields[i];
        for (Slot const& slot : slots) {
            if (field.name == nullptr || std::strcmp(field.name, slot.name) != 0) continue;
            auto const value = number(field);
            if (!value)
                return Problem{where, std::string("attribute ") + slot.name + " is no number",
                               "one int or float", kExportAgain};
            *slot.value = *value;
        }
    }

    if (group_size != format.weight_group) {
        return Problem{where, "group_size " + show(group_size), std::to_string(format.weight_group),
                       kExportAgain};
    }
    if (act_unsigned != 0 && act_unsigned != 1) {
        return Problem{where, "act_unsigned " + show(act_unsigned), "0 or 1", kExportAgain};
    }
    if (act_unsigned == 1 && !format.has_unsigned) {
        return Problem{where, "act_unsigned 1", "0, because only int4 has unsigned codes", kExportAgain};
    }
    if (!std::isfinite(act_shift) || (act_shift != 0 && act_unsigned == 0)) {
        return Problem{where, "act_shift " + show(act_shift),
                       "a finite number, and 0 where act_unsigned is 0", kExportAgain};
    }
    out.group_size = static_cast<int32_t>(group_size);
    out.act_unsigned = static_cast<int32_t>(act_unsigned);
    out.act_shift = static_cast<float>(act_shift);
    return std::nullopt;
}

}  // namespace svdq::trt
