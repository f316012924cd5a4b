#include "svdq_plugin.h"

#include <array>
#include <utility>

#include "op_call.h"

namespace svdq::trt {
namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginCapabilityType;

constexpr int32_t kOk = 0, kFailed = -1;
constexpr size_t kWorkspaceBound = 0;  // no workspace: enqueue then reports what is missing

std::string summarize(contract::OpRow const& op, Attributes const& a) {
    std::string text = std::string(op.op_type) + "/" + contract::kPluginVersion + " " + contract::kGroupSizeName + "=" +
                       std::to_string(a.group_size);
    for (int32_t i = 0; i < op.num_linears; ++i) {
        auto const& names = op.linears[i].names;
        text += std::string(" ") + names.act_unsigned + "=" + std::to_string(a.linears[i].act_unsigned) + " " +
                names.act_shift + "=" + std::to_string(a.linears[i].act_shift);
    }
    return text;
}

// Constant dimensions as numbers, computed ones as kUnknown.
Dims known_dims(nvinfer1::DimsExprs const& exprs) {
    Dims dims{};
    dims.nbDims = exprs.nbDims;
    for (int32_t i = 0; i < exprs.nbDims && i < Dims::MAX_DIMS; ++i) {
        dims.d[i] = exprs.d[i] && exprs.d[i]->isConstant() ? exprs.d[i]->getConstantValue() : kUnknown;
    }
    return dims;
}

// get() of each of the op's inputs.
template <class Desc, class Get>
auto gather(contract::OpRow const& op, Desc const* in, Get get) {
    std::array<decltype(get(*in)), kMaxInputs> found{};
    for (int32_t i = 0; i < op.num_inputs(); ++i) found[i] = get(in[i]);
    return found;
}

int32_t refuse(std::optional<Problem> const& problem) {
    if (!problem) return kOk;
    log_error(*problem);
    return kFailed;
}

}  // namespace

std::string layer_where(contract::OpRow const& op, char const* layer) {
    return "layer '" + std::string(layer ? layer : "") + "' (" + op.op_type + ")";
}

SvdqPlugin::SvdqPlugin(contract::OpRow const& op, Attributes const& attributes, std::string where)
    : op_(op),
      attributes_(attributes),
      where_(std::move(where)),
      summary_(summarize(op, attributes)),
      fields_(make_fields(op, &attributes_)),
      field_list_{num_attributes(op.num_linears), fields_.data()} {}

SvdqPlugin::SvdqPlugin(SvdqPlugin const& other) : SvdqPlugin(other.op_, other.attributes_, other.where_) {
    sizes_ = other.sizes_;
}

nvinfer1::IPluginCapability* SvdqPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* SvdqPlugin::clone() noexcept {
    return guard<nvinfer1::IPluginV3*>("SvdqPlugin::clone", nullptr, [&] { return new SvdqPlugin(*this); });
}

nvinfer1::PluginFieldCollection const* SvdqPlugin::getFieldsToSerialize() noexcept { return &field_list_; }

std::optional<Problem> SvdqPlugin::check_count(int32_t nb_in, int32_t nb_out) const {
    if (nb_in == op_.num_inputs() && nb_out == 1) return std::nullopt;
    return Problem{where_, std::to_string(nb_in) + " inputs and " + std::to_string(nb_out) + " outputs",
                   std::to_string(op_.num_inputs()) + " inputs and 1 output",
                   "Every input is given always: zeros for no bias, R = 0 for no low-rank branch."};
}

int32_t SvdqPlugin::getOutputDataTypes(DataType* out_types, int32_t nb_out, DataType const* in_types,
                                       int32_t nb_in) const noexcept {
    return guard("SvdqPlugin::getOutputDataTypes", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        if (auto problem = check_types(where_, op_, in_types)) return refuse(problem);
        out_types[0] = in_types[contract::kX];
        return kOk;
    });
}

int32_t SvdqPlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t nb_in, nvinfer1::DimsExprs const*, int32_t,
                                    nvinfer1::DimsExprs* out, int32_t nb_out,
                                    nvinfer1::IExprBuilder& builder) noexcept {
    return guard("SvdqPlugin::getOutputShapes", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        OpSizes sizes;
        auto const shapes = gather(op_, in, known_dims);
        if (auto problem = check_shapes(where_, op_, shapes.data(), sizes)) return refuse(problem);
        out[0] = in[contract::kX];
        int32_t const last = op_.num_linears - 1;
        auto const* n = in[contract::input_of(last, contract::kQweight)].d[0];
        if (op_.linears[last].activation == SVDQ_ACT_GEGLU) {
            n = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *n, *builder.constant(2));
        }
        out[0].d[out[0].nbDims - 1] = n;
        return kOk;
    });
}

bool SvdqPlugin::supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* in_out, int32_t nb_in,
                                           int32_t nb_out) noexcept {
    if (nb_in != op_.num_inputs() || nb_out != 1 || pos < 0 || pos > nb_in) return false;
    auto const& desc = in_out[pos].desc;
    if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (pos == contract::kX) return desc.type == DataType::kHALF || desc.type == DataType::kBF16;
    DataType const act = in_out[contract::kX].desc.type;
    return desc.type == (pos == nb_in ? act : want_type(op_, pos, act));  // the output has x's dtype
}

// Sizes at the profile's upper limits, and their workspace.
std::optional<Problem> SvdqPlugin::check_max(nvinfer1::DynamicPluginTensorDesc const* in, size_t& bytes) const {
    OpSizes sizes;
    auto const shapes = gather(op_, in, [](auto const& d) { return d.max; });
    if (auto problem = check_shapes(where_, op_, shapes.data(), sizes)) return problem;
    return workspace_bytes(where_, op_, sizes, bytes);
}

int32_t SvdqPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                                    nvinfer1::DynamicPluginTensorDesc const*, int32_t nb_out) noexcept {
    return guard("SvdqPlugin::configurePlugin", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        OpSizes sizes;
        auto const low = gather(op_, in, [](auto const& d) { return d.min; });
        if (auto problem = check_shapes(where_, op_, low.data(), sizes)) return refuse(problem);
        size_t bytes = 0;
        return refuse(check_max(in, bytes));
    });
}

size_t SvdqPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                                    nvinfer1::DynamicPluginTensorDesc const*, int32_t nb_out) const noexcept {
    return guard("SvdqPlugin::getWorkspaceSize", kWorkspaceBound, [&] {
        size_t bytes = 0;
        if (refuse(check_count(nb_in, nb_out)) != kOk || refuse(check_max(in, bytes)) != kOk) return kWorkspaceBound;
        return bytes;
    });
}

int32_t SvdqPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nb_in,
                                  nvinfer1::PluginTensorDesc const*, int32_t nb_out) noexcept {
    return guard("SvdqPlugin::onShapeChange", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        auto const types = gather(op_, in, [](auto const& d) { return d.type; });
        if (auto problem = check_types(where_, op_, types.data())) return refuse(problem);
        OpSizes sizes;
        auto const shapes = gather(op_, in, [](auto const& d) { return d.dims; });
        if (auto problem = check_shapes(where_, op_, shapes.data(), sizes)) return refuse(problem);
        sizes_ = sizes;
        return kOk;
    });
}

int32_t SvdqPlugin::enqueue(nvinfer1::PluginTensorDesc const* in_desc, nvinfer1::PluginTensorDesc const*,
                            void const* const* inputs, void* const* outputs, void* workspace,
                            cudaStream_t stream) noexcept {
    return guard("SvdqPlugin::enqueue", kFailed, [&] {
        OpCall const call{in_desc[contract::kX].type, inputs, outputs[0], workspace, stream};
        return refuse(run_op(where_, op_, attributes_, sizes_, call));
    });
}

}  // namespace svdq::trt
