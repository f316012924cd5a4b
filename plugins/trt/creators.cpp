// What TensorRT asks of a plugin library: one creator per op type, and a place to leave its logger.
#include <array>
#include <utility>

#include "attention.h"
#include "linear.h"
#include "svdq_plugin.h"

namespace svdq::trt {
namespace {

using nvinfer1::PluginFieldCollection;

template <class Kind>
class SvdqCreator final : public nvinfer1::IPluginCreatorV3One {
public:
    explicit SvdqCreator(typename Kind::Row const& op)
        : op_(op), fields_(Kind::make_fields(op, nullptr)), field_list_{Kind::num_fields(op), fields_.data()} {}
    SvdqCreator(SvdqCreator const&) = delete;
    SvdqCreator& operator=(SvdqCreator const&) = delete;

    // The same in both phases: the plan holds the fields of getFieldsToSerialize().
    nvinfer1::IPluginV3* createPlugin(char const* name, PluginFieldCollection const* fields,
                                      nvinfer1::TensorRTPhase) noexcept override {
        return guard<nvinfer1::IPluginV3*>("SvdqCreator::createPlugin", nullptr, [&]() -> SvdqPlugin<Kind>* {
            std::string where = layer_where(op_.op_type, name);
            typename Kind::Attributes attributes;
            if (auto problem = Kind::read_attributes(where, op_, fields, attributes)) {
                log_error(*problem);
                return nullptr;
            }
            return new SvdqPlugin<Kind>(op_, attributes, std::move(where));
        });
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &field_list_; }
    char const* getPluginName() const noexcept override { return op_.op_type; }
    char const* getPluginVersion() const noexcept override { return contract::kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return contract::kPluginNamespace; }

private:
    typename Kind::Row const& op_;
    typename Kind::Fields const fields_;  // names and types only
    PluginFieldCollection const field_list_;
};

template <class Kind, size_t... I>
std::array<SvdqCreator<Kind>, sizeof...(I)> make_creators(std::index_sequence<I...>) {
    return {{SvdqCreator<Kind>(Kind::kRows[I])...}};
}

constexpr size_t kNumOps = Linear::kRows.size() + Attention::kRows.size();
using CreatorList = std::array<nvinfer1::IPluginCreatorInterface*, kNumOps>;

// Built once, on first use; read-only afterwards.
CreatorList& creator_list() {
    static auto linears = make_creators<Linear>(std::make_index_sequence<Linear::kRows.size()>{});
    static auto attentions = make_creators<Attention>(std::make_index_sequence<Attention::kRows.size()>{});
    static auto list = [] {
        CreatorList pointers{};
        size_t i = 0;
        for (auto& creator : linears) pointers[i++] = &creator;
        for (auto& creator : attentions) pointers[i++] = &creator;
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
