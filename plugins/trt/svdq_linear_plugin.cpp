#include "svdq_linear_plugin.h"

#include <array>
#include <utility>

namespace svdq::trt {
namespace {

using contract::kNumInputs;
using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::PluginCapabilityType;

constexpr int32_t kOk = 0, kFailed = -1;
constexpr size_t kWorkspaceBound = 0;  // no workspace: enqueue then reports what is missing

std::string summarize(contract::OpRow const& op, Attributes const& a) {
    return std::string(op.op_type) + "/" + contract::kPluginVersion +
           " group_size=" + std::to_string(a.group_size) + " act_unsigned=" + std::to_string(a.act_unsigned) +
           " act_shift=" + std::to_string(a.act_shift);
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

template <typename Desc, typename Get>
std::array<Dims, kNumInputs> gather(Desc const* in, Get get) {
    std::array<Dims, kNumInputs> shapes;
    for (int32_t i = 0; i < kNumInputs; ++i) shapes[i] = get(in[i]);
    return shapes;
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

SvdqLinearPlugin::SvdqLinearPlugin(contract::OpRow const& op, Attributes const& attributes, std::string where)
    : op_(op),
      attributes_(attributes),
      where_(std::move(where)),
      summary_(summarize(op, attributes)),
      fields_(make_fields(&attributes_)),
      field_list_{kNumAttributes, fields_.data()} {}

SvdqLinearPlugin::SvdqLinearPlugin(SvdqLinearPlugin const& other)
    : SvdqLinearPlugin(other.op_, other.attributes_, other.where_) {
    sizes_ = other.sizes_;
}

nvinfer1::IPluginCapability* SvdqLinearPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

nvinfer1::IPluginV3* SvdqLinearPlugin::clone() noexcept {
    return guard<nvinfer1::IPluginV3*>("SvdqLinearPlugin::clone", nullptr,
                                       [&] { return new SvdqLinearPlugin(*this); });
}

nvinfer1::PluginFieldCollection const* SvdqLinearPlugin::getFieldsToSerialize() noexcept {
    return &field_list_;
}

std::optional<Problem> SvdqLinearPlugin::check_count(int32_t nb_in, int32_t nb_out) const {
    if (nb_in == kNumInputs && nb_out == 1) return std::nullopt;
    return Problem{where_, std::to_string(nb_in) + " inputs and " + std::to_string(nb_out) + " outputs",
                   std::to_string(kNumInputs) + " inputs and 1 output",
                   "Every input is given always: zeros for no bias, R = 0 for no low-rank branch."};
}

int32_t SvdqLinearPlugin::getOutputDataTypes(DataType* out_types, int32_t nb_out, DataType const* in_types,
                                             int32_t nb_in) const noexcept {
    return guard("SvdqLinearPlugin::getOutputDataTypes", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        if (auto problem = check_types(where_, op_, in_types)) return refuse(problem);
        out_types[0] = in_types[contract::kX];
        return kOk;
    });
}

int32_t SvdqLinearPlugin::getOutputShapes(nvinfer1::DimsExprs const* in, int32_t nb_in,
                                          nvinfer1::DimsExprs const*, int32_t, nvinfer1::DimsExprs* out,
                                          int32_t nb_out, nvinfer1::IExprBuilder& builder) noexcept {
    return guard("SvdqLinearPlugin::getOutputShapes", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        Sizes sizes;
        auto const shapes = gather(in, known_dims);
        if (auto problem = check_shapes(where_, op_, shapes.data(), sizes)) return refuse(problem);
        out[0] = in[contract::kX];
        auto const* n = in[contract::kQweight].d[0];
        if (op_.activation == SVDQ_ACT_GEGLU) {
            n = builder.operation(nvinfer1::DimensionOperation::kFLOOR_DIV, *n, *builder.constant(2));
        }
        out[0].d[out[0].nbDims - 1] = n;
        return kOk;
    });
}

bool SvdqLinearPlugin::supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* in_out,
                                                 int32_t nb_in, int32_t nb_out) noexcept {
    if (nb_in != kNumInputs || nb_out != 1 || pos < 0 || pos > kNumInputs) return false;
    auto const& desc = in_out[pos].desc;
    if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
    if (pos == contract::kX) return desc.type == DataType::kHALF || desc.type == DataType::kBF16;
    return desc.type == want_type(op_, pos, in_out[contract::kX].desc.type);  // the output has x's dtype
}

// Sizes at the profile's upper limits, and their workspace.
std::optional<Problem> SvdqLinearPlugin::check_max(nvinfer1::DynamicPluginTensorDesc const* in,
                                                   size_t& bytes) const {
    Sizes sizes;
    auto const shapes = gather(in, [](auto const& d) { return d.max; });
    if (auto problem = check_shapes(where_, op_, shapes.data(), sizes)) return problem;
    return workspace_bytes(where_, op_, sizes, bytes);
}

int32_t SvdqLinearPlugin::configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                                          nvinfer1::DynamicPluginTensorDesc const*, int32_t nb_out) noexcept {
    return guard("SvdqLinearPlugin::configurePlugin", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        Sizes sizes;
        auto const low = gather(in, [](auto const& d) { return d.min; });
        if (auto problem = check_shapes(where_, op_, low.data(), sizes)) return refuse(problem);
        size_t bytes = 0;
        return refuse(check_max(in, bytes));
    });
}

size_t SvdqLinearPlugin::getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                                          nvinfer1::DynamicPluginTensorDesc const*,
                                          int32_t nb_out) const noexcept {
    return guard("SvdqLinearPlugin::getWorkspaceSize", kWorkspaceBound, [&] {
        size_t bytes = 0;
        if (refuse(check_count(nb_in, nb_out)) != kOk || refuse(check_max(in, bytes)) != kOk)
            return kWorkspaceBound;
        return bytes;
    });
}

int32_t SvdqLinearPlugin::onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nb_in,
                                        nvinfer1::PluginTensorDesc const*, int32_t nb_out) noexcept {
    return guard("SvdqLinearPlugin::onShapeChange", kFailed, [&] {
        if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
        std::array<DataType, kNumInputs> types;
        for (int32_t i = 0; i < kNumInputs; ++i) types[i] = in[i].type;
        if (auto problem = check_types(where_, op_, types.data())) return refuse(problem);
        Sizes sizes;
        auto const shapes = gather(in, [](auto const& d) { return d.dims; });
        if (auto problem = check_shapes(where_, op_, shapes.data(), sizes)) return refuse(problem);
        sizes_ = sizes;
        return kOk;
    });
}

int32_t SvdqLinearPlugin::enqueue(nvinfer1::PluginTensorDesc const* in_desc,
                                  nvinfer1::PluginTensorDesc const*, void const* const* inputs,
                                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
    return guard("SvdqLinearPlugin::enqueue", kFailed, [&] {
        size_t bytes = 0;  // TensorRT does not pass the size on: it gave at least what these sizes need
        if (auto problem = workspace_bytes(where_, op_, sizes_, bytes)) return refuse(problem);
        svdq_linear_params p{};
        p.format = op_.format;
        p.activation = op_.activation;
        p.dtype = in_desc[contract::kX].type == DataType::kBF16 ? SVDQ_BF16 : SVDQ_F16;
        p.act_unsigned = attributes_.act_unsigned;
        p.act_shift = attributes_.act_shift;
        p.m = static_cast<int32_t>(sizes_.m);
        p.n = static_cast<int32_t>(sizes_.n);
        p.k = static_cast<int32_t>(sizes_.k);
        p.r = static_cast<int32_t>(sizes_.r);
        p.x = inputs[contract::kX];
        p.qweight = inputs[contract::kQweight];
        p.wscale = inputs[contract::kWscale];
        p.act_mul = inputs[contract::kActMul];
        p.lora_down = inputs[contract::kLoraDown];
        p.lora_up = inputs[contract::kLoraUp];
        p.bias = inputs[contract::kBias];
        p.wscale2 = inputs[contract::kWscale2];
        p.y = outputs[0];
        p.workspace = workspace;
        p.workspace_bytes = bytes;
        svdq_status const status = svdq_linear(&p, stream);
        if (status == SVDQ_OK) return kOk;
        std::string got = svdq_status_string(status);
        if (status == SVDQ_CUDA) got += " (CUDA error " + std::to_string(svdq_last_cuda_error()) + ")";
        return refuse(
            Problem{where_, got, "a launch that succeeds",
                    status == SVDQ_UNSUPPORTED ? "Build the engine with a format that this GPU has." : ""});
    });
}

}  // namespace svdq::trt
