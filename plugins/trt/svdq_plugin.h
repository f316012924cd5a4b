// One TensorRT plugin class for all op types of the contract: an op type is a row of contract::kOps.
//
// The weights are inputs, so a plugin object holds only its row, a few numbers and, once shapes are known,
// its sizes. Nothing is shared between clones: any number of contexts and threads may run at once.
// The build phase makes no CUDA call, because the building machine may have no GPU.
#pragma once

#include <optional>
#include <string>

#include "attributes.h"
#include "checks.h"
#include "svdq/contract.h"
#include "trt.h"

namespace svdq::trt {

class SvdqPlugin final : public nvinfer1::IPluginV3,
                         public nvinfer1::IPluginV3OneCore,
                         public nvinfer1::IPluginV3OneBuild,
                         public nvinfer1::IPluginV3OneRuntime {
public:
    // `where`: layer_where() of the node, for messages. `op` must have static lifetime (a row of contract::kOps).
    SvdqPlugin(contract::OpRow const& op, Attributes const& attributes, std::string where);

    // IPluginV3
    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::IPluginV3* clone() noexcept override;

    // Core
    char const* getPluginName() const noexcept override { return op_.op_type; }
    char const* getPluginVersion() const noexcept override { return contract::kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return contract::kPluginNamespace; }

    // Build
    int32_t getNbOutputs() const noexcept override { return 1; }
    int32_t getOutputDataTypes(nvinfer1::DataType* out_types, int32_t nb_out, nvinfer1::DataType const* in_types,
                               int32_t nb_in) const noexcept override;
    int32_t getOutputShapes(nvinfer1::DimsExprs const* in, int32_t nb_in, nvinfer1::DimsExprs const* shape_in,
                            int32_t nb_shape_in, nvinfer1::DimsExprs* out, int32_t nb_out,
                            nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(int32_t pos, nvinfer1::DynamicPluginTensorDesc const* in_out, int32_t nb_in,
                                   int32_t nb_out) noexcept override;
    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                            nvinfer1::DynamicPluginTensorDesc const* out, int32_t nb_out) noexcept override;
    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* in, int32_t nb_in,
                            nvinfer1::DynamicPluginTensorDesc const* out, int32_t nb_out) const noexcept override;
    char const* getTimingCacheID() noexcept override { return summary_.c_str(); }
    char const* getMetadataString() noexcept override { return summary_.c_str(); }

    // Runtime
    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* in, int32_t nb_in, nvinfer1::PluginTensorDesc const* out,
                          int32_t nb_out) noexcept override;
    int32_t enqueue(nvinfer1::PluginTensorDesc const* in_desc, nvinfer1::PluginTensorDesc const* out_desc,
                    void const* const* inputs, void* const* outputs, void* workspace,
                    cudaStream_t stream) noexcept override;
    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext*) noexcept override { return clone(); }
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    SvdqPlugin(SvdqPlugin const& other);
    std::optional<Problem> check_count(int32_t nb_in, int32_t nb_out) const;
    std::optional<Problem> check_max(nvinfer1::DynamicPluginTensorDesc const* in, size_t& bytes) const;

    contract::OpRow const& op_;
    Attributes const attributes_;
    std::string const where_;    // "layer 'blocks.0.to_q' (SVDQLinearInt4)"
    std::string const summary_;  // the attributes in words: timing cache key and the layer's metadata
    OpSizes sizes_;              // of the last onShapeChange
    FieldArray const fields_;    // point into attributes_
    nvinfer1::PluginFieldCollection const field_list_;
};

// "layer 'NAME' (OPTYPE)", the start of every message about a node.
std::string layer_where(contract::OpRow const& op, char const* layer);

}  // namespace svdq::trt
