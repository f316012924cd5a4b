// What TensorRT asks of a plugin library: one creator per op type, and a place to leave its logger.
#include <array>
#include <utility>

#include "attributes.h"
#include "log.h"
#include "svdq/contract.h"
#include "svdq_plugin.h"

namespace svdq::trt {
namespace {

using nvinfer1::PluginFieldCollection;

class SvdqCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit SvdqCreator(contract::OpRow const& op)
        : op_(op), fields_(make_fields(op, nullptr)), field_list_{num_attributes(op.num_linears), fields_.data()} {}
    SvdqCreator(SvdqCreator const&) = delete;
    SvdqCreator& operator=(SvdqCreator const&) = delete;

    // The same in both phases: the plan holds the fields of getFieldsToSerialize().
    nvinfer1::IPluginV3* createPlugin(char const* name, PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return guard<nvinfer1::IPluginV3*>("SvdqCreator::createPlugin", nullptr, [&]() -> SvdqPlugin* {
            std::string where = layer_where(op_, name);
            Attributes attributes;
            if (auto problem = read_attributes(where, op_, fields, attributes)) {
                log_error(*problem);
                return nullptr;
            }
            return new SvdqPlugin(op_, attributes, std::move(where));
        });
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &field_list_; }
    char const* getPluginName() const noexcept override { return op_.op_type; }
    char const* getPluginVersion() const noexcept override { return contract::kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return contract::kPluginNamespace; }

private:
    contract::OpRow const& op_;
    FieldArray const fields_;  // names and types only
    PluginFieldCollection const field_list_;
};

constexpr size_t kNumOps = contract::kOps.size();

template <size_t... I>
std::array<SvdqCreator, kNumOps> make_creators(std::index_sequence<I...>) {
    return {{SvdqCreator(contract::kOps[I])...}};
}

// Built once, on first use; read-only afterwards.
std::array<nvinfer1::IPluginCreatorInterface*, kNumOps>& creator_list() {
    static auto creators = make_creators(std::make_index_sequence<kNumOps>{});
    static auto list = [] {
        std::array<nvinfer1::IPluginCreatorInterface*, kNumOps> pointers{};
        for (size_t i = 0; i < kNumOps; ++i) pointers[i] = &creators[i];
        return pointers;
    }();
    return list;
}

}  // namespace
}  // namespace svdq::trt

#define SVDQ_EXPORT extern "C" __attribute__((visibility("default")))

SVDQ_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    count = static_cast<int32_t>(svdq::trt::kNumOps);
    return svdq::trt::creator_list().data();
}

SVDQ_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { svdq::trt::set_logger_finder(finder); }
