#include "checks.h"

#include <array>
#include <limits>

namespace svdq::trt {
namespace {

using contract::kNumInputs;
using nvinfer1::DataType;
using nvinfer1::Dims;

constexpr char kKeep16Bit[] = "Leave this linear in 16 bit.";
constexpr char kExportAgain[] = "Export the model again with this version of svdq_trt.";

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

Dims make_dims(std::initializer_list<int64_t> values) {
    Dims dims{};
    for (int64_t value : values) dims.d[dims.nbDims++] = value;
    return dims;
}

std::string input_where(std::string const& where, int32_t index) {
    return where + ", input " + contract::kInputNames[index];
}

int64_t divided(int64_t value, int64_t by) { return value < 0 ? kUnknown : value / by; }

bool fits(Dims const& got, Dims const& want) {
    if (got.nbDims != want.nbDims) return false;
    for (int32_t i = 0; i < got.nbDims; ++i) {
        if (got.d[i] >= 0 && want.d[i] >= 0 && got.d[i] != want.d[i]) return false;
    }
    return true;
}

// `value` is positive (or zero where allowed) and a multiple of `multiple`; unknown passes.
std::optional<Problem> check_multiple(std::string const& where, char const* letter, int64_t value,
                                      int64_t multiple, int64_t least, int64_t most) {
    if (value == kUnknown || (value >= least && value <= most && value % multiple == 0)) return std::nullopt;
    std::string want = "a multiple of " + std::to_string(multiple) + ", at least " + std::to_string(least);
    if (value > most) want += " and at most " + std::to_string(most);
    return Problem{where, std::string(letter) + " = " + std::to_string(value), want, kKeep16Bit};
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

}  // namespace

DataType want_type(contract::OpRow const& op, int32_t index, DataType act) {
    switch (index) {
        case contract::kQweight: return DataType::kINT8;
        case contract::kWscale:
            return contract::kFormats[op.format].wscale_is_act_dtype ? act : DataType::kINT8;
        case contract::kWscale2: return DataType::kFLOAT;
        default: return act;
    }
}

std::optional<Problem> check_types(std::string const& where, contract::OpRow const& op,
                                   DataType const* types) {
    DataType const act = types[contract::kX];
    if (act != DataType::kHALF && act != DataType::kBF16) {
        return Problem{input_where(where, contract::kX), type_name(act), "float16 or bfloat16",
                       "Export the model in float16 or bfloat16."};
    }
    for (int32_t i = 0; i < kNumInputs; ++i) {
        DataType const want = want_type(op, i, act);
        if (types[i] != want) {
            return Problem{input_where(where, i), type_name(types[i]), type_name(want), kExportAgain};
        }
    }
    return std::nullopt;
}

std::optional<Problem> check_shapes(std::string const& where, contract::OpRow const& op, Dims const* shapes,
                                    Sizes& sizes) {
    auto const& format = contract::kFormats[op.format];
    Dims const& x = shapes[contract::kX];
    if (x.nbDims < 2 || x.nbDims > Dims::MAX_DIMS) {
        return Problem{input_where(where, contract::kX), shape_name(x), "[..., K] with 2 to 8 dimensions",
                       kExportAgain};
    }
    Dims const& qweight = shapes[contract::kQweight];
    Dims const& lora_down = shapes[contract::kLoraDown];
    if (qweight.nbDims == 2) sizes.n = qweight.d[0];
    if (lora_down.nbDims == 2) sizes.r = lora_down.d[0];
    sizes.k = x.d[x.nbDims - 1];
    if (sizes.k < 0 && qweight.nbDims == 2) sizes.k = qweight.d[1] < 0 ? kUnknown : qweight.d[1] * 2;
    sizes.m = token_count(x);

    constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
    int64_t const n_multiple = contract::kNMultiple * (op.activation == SVDQ_ACT_GEGLU ? 2 : 1);
    if (auto p =
            check_multiple(where, "K", sizes.k, contract::kKMultiple, contract::kKMultiple, format.max_k))
        return p;
    if (auto p = check_multiple(where, "N", sizes.n, n_multiple, n_multiple, kMax)) return p;
    if (auto p = check_multiple(where, "R", sizes.r, contract::kRMultiple, 0, kMax)) return p;
    if (sizes.m > kMax) {
        return Problem{where, "M = " + std::to_string(sizes.m) + " tokens", "at most " + std::to_string(kMax),
                       "Lower the batch or the resolution of the profile."};
    }

    int64_t const n = sizes.n, k = sizes.k, r = sizes.r, groups = divided(k, contract::kKMultiple);
    std::array<Dims, kNumInputs> want;
    want[contract::kX] = x;
    want[contract::kX].d[x.nbDims - 1] = k;
    want[contract::kQweight] = make_dims({n, divided(k, 2)});
    want[contract::kWscale] =
        format.wscale_cols == 1 ? make_dims({groups, n}) : make_dims({groups, n, format.wscale_cols});
    want[contract::kActMul] = make_dims({k});
    want[contract::kLoraDown] = make_dims({r, k});
    want[contract::kLoraUp] = make_dims({n, r});
    want[contract::kBias] = make_dims({n});
    want[contract::kWscale2] = make_dims({n});
    for (int32_t i = 0; i < kNumInputs; ++i) {
        if (!fits(shapes[i], want[i])) {
            return Problem{input_where(where, i), shape_name(shapes[i]), shape_name(want[i]), kExportAgain};
        }
    }
    return std::nullopt;
}

std::optional<Problem> workspace_bytes(std::string const& where, contract::OpRow const& op, Sizes const& s,
                                       size_t& bytes) {
    if (s.m < 0 || s.n < 0 || s.k < 0 || s.r < 0) {
        return Problem{where, "sizes without an upper limit",
                       "an optimization profile with a maximum for every axis",
                       "Give the engine builder --shapes for every dynamic axis."};
    }
    svdq_status const status =
        svdq_workspace_bytes(op.format, static_cast<int32_t>(s.m), static_cast<int32_t>(s.n),
                             static_cast<int32_t>(s.k), static_cast<int32_t>(s.r), &bytes);
    if (status == SVDQ_OK) return std::nullopt;
    std::string const got = "M=" + std::to_string(s.m) + " N=" + std::to_string(s.n) +
                            " K=" + std::to_string(s.k) + " R=" + std::to_string(s.r) + " (" +
                            svdq_status_string(status) + ")";
    return Problem{where, got, "sizes that the kernels take (plugins/include/svdq/svdq.h)", kKeep16Bit};
}

}  // namespace svdq::trt
