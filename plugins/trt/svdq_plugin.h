// One TensorRT plugin class for all op types of the contract. A kind of op (linear.h, attention.h) says what is its
// own; an op type is a row of its kind's table.
//
// The weights are inputs, so a plugin object holds only its row, a few numbers and, once shapes are known,
// its sizes. Nothing is shared between clones: any number of contexts and threads may run at once.
// The build phase makes no CUDA call, because the building machine may have no GPU.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>

#include "common.h"

namespace svdq::trt {

// "layer 'NAME' (OPTYPE)", the start of every message about a node.
inline std::string layer_where(char const* op_type, char const* layer) {
    return "layer '" + std::string(layer ? layer : "") + "' (" + op_type + ")";
}

template <class Kind>
class SvdqPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
    using DataType = nvinfer1::DataType;
    using Dims = nvinfer1::Dims;
    using Row = typename Kind::Row;
    using Attributes = typename Kind::Attributes;
    using Sizes = typename Kind::Sizes;
    using Types = std::array<DataType, Kind::kMaxInputs>;
    static constexpr int32_t kOk = 0, kFailed = -1;
    static constexpr size_t kWorkspaceBound = 0;  // no workspace: enqueue then reports what is missing

public:
    // `where`: layer_where() of the node, for messages. `op` must have static lifetime (a row of Kind::kRows).
    SvdqPlugin(Row const& op, Attributes const& attributes, std::string where)
        : op_(op),
          attributes_(attributes),
          where_(std::move(where)),
          fields_(Kind::make_fields(op, &attributes_)),
          field_list_{Kind::num_fields(op), fields_.data()},
          summary_(summarize()) {}

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override {
        switch (type) {
            case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
            case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<nvinfer1::IPluginV3OneBuild*>(this);
            case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    nvinfer1::IPluginV3* clone() noexcept override {
        return guard<nvinfer1::IPluginV3*>("SvdqPlugin::clone", nullptr, [&] { return new SvdqPlugin(*this); });
    }

    // Core
    char const* getPluginName() const noexcept override { return op_.op_type; }
    char const* getPluginVersion() const noexcept override { return contract::kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return contract::kPluginNamespace; }

    // Build
    int32_t getNbOutputs() const noexcept override { return Kind::num_outputs(op_); }
    int32_t getOutputDataTypes(DataType* out_types, int32_t nb_out, DataType const* in_types,
                               int32_t nb_in) const noexcept override {
        return guard("SvdqPlugin::getOutputDataTypes", kFailed, [&] {
            if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
            if (auto problem = Kind::check_types(where_, op_, in_types)) return refuse(problem);
            for (int32_t i = 0; i < nb_out; ++i) out_types[i] = in_types[0];
            return kOk;
        });
    }
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t nb_in, nvinfer1::DimsExprs const*, int32_t,
                            nvinfer1::DimsExprs* out, int32_t nb_out,
                            nvinfer1::IExprBuilder& builder) noexcept override {
        return guard("SvdqPlugin::getOutputShapes", kFailed, [&] {
            if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
            Sizes sizes{};
            if (auto problem = check_shapes(in, known_dims, sizes)) return refuse(problem);
            Kind::output_shapes(op_, attributes_, in, out, builder);
            return kOk;
        });
    }
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* in_out, int32_t nb_in,
                                   int32_t nb_out) noexcept override {
        if (check_count(nb_in, nb_out) || pos < 0 || pos >= nb_in + nb_out) return false;
        auto const& desc = in_out[pos].desc;
        if (desc.format != nvinfer1::TensorFormat::kLINEAR) return false;
        if (pos == 0) return is_act(desc.type);
        DataType const act = in_out[0].desc.type;
        return desc.type == (pos >= nb_in ? act : Kind::want_type(op_, pos, act));  // outputs have the act dtype
    }
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                            nvinfer1::DynamicPluginTensorDesc const*, int32_t nb_out) noexcept override {
        return guard("SvdqPlugin::configurePlugin", kFailed, [&] {
            if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
            Sizes sizes{};
            if (auto problem = check_shapes(in, [](auto const& d) { return d.min; }, sizes)) return refuse(problem);
            size_t bytes = 0;
            return refuse(check_max(in, bytes));
        });
    }
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                            nvinfer1::DynamicPluginTensorDesc const*, int32_t nb_out) const noexcept override {
        return guard("SvdqPlugin::getWorkspaceSize", kWorkspaceBound, [&] {
            size_t bytes = 0;
            if (refuse(check_count(nb_in, nb_out)) != kOk || refuse(check_max(in, bytes)) != kOk)
                return kWorkspaceBound;
            return bytes;
        });
    }
    char const* getTimingCacheID() noexcept override { return summary_.c_str(); }
    char const* getMetadataString() noexcept override { return summary_.c_str(); }

    // Runtime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nb_in, nvinfer1::PluginTensorDesc const*,
                          int32_t nb_out) noexcept override {
        return guard("SvdqPlugin::onShapeChange", kFailed, [&] {
            if (auto problem = check_count(nb_in, nb_out)) return refuse(problem);
            Types types{};
            for (int32_t i = 0; i < nb_in; ++i) types[i] = in[i].type;
            if (auto problem = Kind::check_types(where_, op_, types.data())) return refuse(problem);
            Sizes sizes{};
            if (auto problem = check_shapes(in, [](auto const& d) { return d.dims; }, sizes)) return refuse(problem);
            sizes_ = sizes;
            return kOk;
        });
    }
    int32_t enqueue(nvinfer1::PluginTensorDesc const* in_desc, nvinfer1::PluginTensorDesc const*,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override {
        return guard("SvdqPlugin::enqueue", kFailed, [&] {
            OpCall const call{in_desc[0].type, inputs, outputs, workspace, stream};
            return refuse(Kind::run(where_, op_, attributes_, sizes_, call));
        });
    }
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override { return &field_list_; }

private:
    SvdqPlugin(SvdqPlugin const& other) : SvdqPlugin(other.op_, other.attributes_, other.where_) {
        sizes_ = other.sizes_;
    }

    // The attributes in words: "OPTYPE/1 name=value ...".
    std::string summarize() const {
        std::string text = std::string(op_.op_type) + "/" + contract::kPluginVersion;
        for (int32_t i = 0; i < field_list_.nbFields; ++i) {
            auto const& field = fields_[i];
            text += std::string(" ") + field.name + "=";
            text += field.type == nvinfer1::PluginFieldType::kINT32
                        ? std::to_string(*static_cast<int32_t const*>(field.data))
                        : show(*static_cast<float const*>(field.data));
        }
        return text;
    }

    static int32_t refuse(std::optional<Problem> const& problem) {
        if (!problem) return kOk;
        log_error(*problem);
        return kFailed;
    }

    std::optional<Problem> check_count(int32_t nb_in, int32_t nb_out) const {
        int32_t const in = Kind::num_inputs(op_), out = Kind::num_outputs(op_);
        if (nb_in == in && nb_out == out) return std::nullopt;
        return Problem{where_, std::to_string(nb_in) + " inputs and " + std::to_string(nb_out) + " outputs",
                       std::to_string(in) + " inputs and " + std::to_string(out) + (out == 1 ? " output" : " outputs"),
                       Kind::kEveryInput};
    }

    // Constant dimensions as numbers, computed ones as kUnknown.
    static Dims known_dims(nvinfer1::DimsExprs const& exprs) {
        Dims dims{};
        dims.nbDims = exprs.nbDims;
        for (int32_t i = 0; i < exprs.nbDims && i < Dims::MAX_DIMS; ++i) {
            dims.d[i] = exprs.d[i] && exprs.d[i]->isConstant() ? exprs.d[i]->getConstantValue() : kUnknown;
        }
        return dims;
    }

    // Kind::check_shapes() on get() of each input.
    template <class Desc, class Get>
    std::optional<Problem> check_shapes(Desc const* in, Get get, Sizes& sizes) const {
        std::array<Dims, Kind::kMaxInputs> shapes{};
        for (int32_t i = 0; i < Kind::num_inputs(op_); ++i) shapes[i] = get(in[i]);
        return Kind::check_shapes(where_, op_, attributes_, shapes.data(), sizes);
    }

    // Sizes at the profile's upper limits, and their workspace.
    std::optional<Problem> check_max(nvinfer1::DynamicPluginTensorDesc const* in, size_t& bytes) const {
        Sizes sizes{};
        if (auto problem = check_shapes(in, [](auto const& d) { return d.max; }, sizes)) return problem;
        return Kind::workspace_bytes(where_, op_, attributes_, sizes, bytes);
    }

    Row const& op_;
    Attributes const attributes_;
    std::string const where_;             // "layer 'blocks.0.to_q' (SVDQLinearInt4)"
    typename Kind::Fields const fields_;  // point into attributes_
    nvinfer1::PluginFieldCollection const field_list_;
    std::string const summary_;  // timing cache key and the layer's metadata
    Sizes sizes_{};              // of the last onShapeChange
};

}  // namespace svdq::trt
