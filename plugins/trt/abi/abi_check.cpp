// Prints every fact of the plugin ABI that this project relies on: sizes, offsets, enum values, vtable slots,
// interface versions. Compiled against plugin_abi.h and against the official headers, it must print the same
// (tests/trt/test_abi.py).
//
// A vtable slot is read from a pointer to member function: in the Itanium C++ ABI its first word is
// 1 + 8 * slot for a virtual function.
#include <cstddef>
#include <cstdio>
#include <cstring>

#include "../trt.h"

using namespace nvinfer1;

template <class Member>
void slot(char const* name, Member member) {
    std::ptrdiff_t words[2];
    static_assert(sizeof member == sizeof words, "not the Itanium ABI");
    std::memcpy(words, &member, sizeof words);
    std::printf("slot %s %td\n", name, words[0] % 8 == 1 ? words[0] / 8 : -1);
}

#define SLOT(type, method) slot(#type "::" #method, &type::method)
#define SIZE(type) std::printf("size %s %zu align %zu\n", #type, sizeof(type), alignof(type))
#define OFFSET(type, field) std::printf("offset %s.%s %zu\n", #type, #field, offsetof(type, field))
#define VALUE(item) std::printf("value %s %d\n", #item, static_cast<int>(item))

// Reports what an interface says of itself; `Base` is abstract, so the version is asked without an object.
#define VERSION(type) \
    do { \
        InterfaceInfo const i = reinterpret_cast<type const*>(&storage)->type::getInterfaceInfo(); \
        std::printf("version %s '%s' %d.%d\n", #type, i.kind, i.major, i.minor); \
    } while (0)

int main() {
    VALUE(DataType::kFLOAT), VALUE(DataType::kHALF), VALUE(DataType::kINT8), VALUE(DataType::kINT32);
    VALUE(DataType::kBOOL), VALUE(DataType::kUINT8), VALUE(DataType::kFP8), VALUE(DataType::kBF16);
    VALUE(DataType::kINT64), VALUE(DataType::kINT4), VALUE(DataType::kFP4), VALUE(TensorFormat::kLINEAR);
    VALUE(PluginFieldType::kFLOAT32), VALUE(PluginFieldType::kFLOAT64), VALUE(PluginFieldType::kINT32);
    VALUE(PluginFieldType::kINT64), VALUE(PluginFieldType::kUNKNOWN);
    VALUE(TensorRTPhase::kBUILD), VALUE(TensorRTPhase::kRUNTIME), VALUE(PluginCapabilityType::kCORE);
    VALUE(PluginCapabilityType::kBUILD), VALUE(PluginCapabilityType::kRUNTIME);
    VALUE(DimensionOperation::kFLOOR_DIV), VALUE(APILanguage::kCPP), VALUE(ILogger::Severity::kERROR);

    SIZE(Dims), SIZE(PluginField), SIZE(PluginFieldCollection), SIZE(PluginTensorDesc);
    SIZE(DynamicPluginTensorDesc), SIZE(DimsExprs), SIZE(InterfaceInfo), SIZE(IDimensionExpr), SIZE(IExprBuilder);
    OFFSET(Dims, nbDims), OFFSET(Dims, d), VALUE(Dims::MAX_DIMS);
    OFFSET(PluginField, name), OFFSET(PluginField, data), OFFSET(PluginField, type), OFFSET(PluginField, length);
    OFFSET(PluginFieldCollection, nbFields), OFFSET(PluginFieldCollection, fields);
    OFFSET(PluginTensorDesc, dims), OFFSET(PluginTensorDesc, type), OFFSET(PluginTensorDesc, format);
    OFFSET(PluginTensorDesc, scale), OFFSET(DynamicPluginTensorDesc, desc), OFFSET(DynamicPluginTensorDesc, min);
    OFFSET(DynamicPluginTensorDesc, max), OFFSET(DynamicPluginTensorDesc, opt);
    OFFSET(DimsExprs, nbDims), OFFSET(DimsExprs, d);

    SLOT(IVersionedInterface, getAPILanguage), SLOT(IVersionedInterface, getInterfaceInfo);
    SLOT(IPluginV3, getCapabilityInterface), SLOT(IPluginV3, clone);
    SLOT(IPluginV3OneCore, getPluginName), SLOT(IPluginV3OneCore, getPluginVersion);
    SLOT(IPluginV3OneCore, getPluginNamespace);
    SLOT(IPluginV3OneBuild, configurePlugin), SLOT(IPluginV3OneBuild, getOutputDataTypes);
    SLOT(IPluginV3OneBuild, getOutputShapes), SLOT(IPluginV3OneBuild, supportsFormatCombination);
    SLOT(IPluginV3OneBuild, getNbOutputs), SLOT(IPluginV3OneBuild, getWorkspaceSize);
    SLOT(IPluginV3OneBuild, getValidTactics), SLOT(IPluginV3OneBuild, getNbTactics);
    SLOT(IPluginV3OneBuild, getTimingCacheID), SLOT(IPluginV3OneBuild, getFormatCombinationLimit);
    SLOT(IPluginV3OneBuild, getMetadataString);
    SLOT(IPluginV3OneRuntime, setTactic), SLOT(IPluginV3OneRuntime, onShapeChange);
    SLOT(IPluginV3OneRuntime, enqueue), SLOT(IPluginV3OneRuntime, attachToContext);
    SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
    SLOT(IPluginCreatorV3One, createPlugin), SLOT(IPluginCreatorV3One, getFieldNames);
    SLOT(IPluginCreatorV3One, getPluginName), SLOT(IPluginCreatorV3One, getPluginVersion);
    SLOT(IPluginCreatorV3One, getPluginNamespace);
    SLOT(ILogger, log), SLOT(ILoggerFinder, findLogger);
    SLOT(apiv::VDimensionExpr, isConstant), SLOT(apiv::VDimensionExpr, getConstantValue);
    SLOT(apiv::VExprBuilder, constant), SLOT(apiv::VExprBuilder, operation);

    // The versions are constants: the qualified calls below read nothing of the object.
    alignas(16) static unsigned char storage[64];
    VERSION(IPluginV3);
    VERSION(IPluginV3OneCore);
    VERSION(IPluginV3OneBuild);
    VERSION(IPluginV3OneRuntime);
    VERSION(IPluginCreatorV3One);
    VERSION(ILogger);
    VERSION(ILoggerFinder);
}
