// Drives a built plugin library as TensorRT does, without TensorRT and without a GPU: creators, both phases,
// serialization, contexts in threads, shapes that change. Prints one line per failed check; exit code 1 then.
//
//   plugin_driver LIBRARY
#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "svdq/contract.h"
#include "trt.h"

using namespace nvinfer1;
namespace contract = svdq::contract;

namespace {

std::atomic<int> g_failures{0};

void check(bool ok, char const* what) {
    if (ok) return;
    ++g_failures;
    std::printf("FAILED %s\n", what);
}

struct Logger final : ILogger {
    std::atomic<int> errors{0};
    void log(Severity severity, char const*) noexcept override { errors += severity <= Severity::kERROR; }
};
struct Finder final : ILoggerFinder {
    Logger logger;
    bool fail = false;
    ILogger* findLogger() override {
        if (fail) throw 1;  // allowed by its declaration: must not get through the plugin
        return &logger;
    }
};

IPluginV3OneRuntime* runtime_of(IPluginV3* plugin) {
    return static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

// The attributes of an op by the contract's names; an op of one linear has no second act_unsigned and act_shift.
struct Values {
    int32_t group_size;
    std::array<int32_t, contract::kMaxLinears> act_unsigned;
    std::array<float, contract::kMaxLinears> act_shift;
    bool operator==(Values const& o) const {
        return group_size == o.group_size && act_unsigned == o.act_unsigned && act_shift == o.act_shift;
    }
};

Values values(int32_t group_size, int32_t act_unsigned, float act_shift) {
    return {group_size, {act_unsigned, 0}, {act_shift, 0.0f}};
}

// From last to first, with one that nobody knows among them.
std::unique_ptr<IPluginV3> create(IPluginCreatorV3One* creator, contract::OpRow const& op, Values const& v,
                                  TensorRTPhase phase) {
    std::vector<PluginField> fields{{"unknown", &v, PluginFieldType::kUNKNOWN, 1}};
    for (int32_t i = op.num_linears; i-- > 0;) {
        auto const& names = op.linears[i].names;
        fields.push_back({names.act_shift, &v.act_shift[i], PluginFieldType::kFLOAT32, 1});
        fields.push_back({names.act_unsigned, &v.act_unsigned[i], PluginFieldType::kINT32, 1});
    }
    fields.push_back({contract::kGroupSizeName, &v.group_size, PluginFieldType::kINT32, 1});
    PluginFieldCollection const list{static_cast<int32_t>(fields.size()), fields.data()};
    return std::unique_ptr<IPluginV3>(creator->createPlugin("driver", &list, phase));
}

// What the plan would hold.
Values serialized(IPluginV3* plugin, contract::OpRow const& op) {
    Values v = values(-1, -1, -1);
    auto const* list = runtime_of(plugin)->getFieldsToSerialize();
    check(list && list->nbFields == 1 + 2 * op.num_linears, "every attribute is serialized");
    for (int32_t i = 0; list && i < list->nbFields; ++i) {
        PluginField const& f = list->fields[i];
        check(f.length == 1, "a field holds one number");
        if (!std::strcmp(f.name, contract::kGroupSizeName)) v.group_size = *static_cast<int32_t const*>(f.data);
        for (int32_t j = 0; j < op.num_linears; ++j) {
            auto const& names = op.linears[j].names;
            if (!std::strcmp(f.name, names.act_unsigned)) v.act_unsigned[j] = *static_cast<int32_t const*>(f.data);
            if (!std::strcmp(f.name, names.act_shift)) v.act_shift[j] = *static_cast<float const*>(f.data);
        }
    }
    return v;
}

PluginTensorDesc desc(DataType type, std::vector<int64_t> const& shape) {
    PluginTensorDesc d{};
    d.dims.nbDims = static_cast<int32_t>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) d.dims.d[i] = shape[i];
    d.type = type;
    d.format = TensorFormat::kLINEAR;
    return d;
}

struct Shape {
    int64_t n, k, r;
};

// The inputs and the output of an int4 op: x is [m, K of the first linear].
std::vector<PluginTensorDesc> int4_descs(int64_t m, std::vector<Shape> const& linears, DataType act) {
    std::vector<PluginTensorDesc> d{desc(act, {m, linears[0].k})};
    for (auto const& [n, k, r] : linears) {
        for (auto const& one : {desc(DataType::kINT8, {n, k / 2}), desc(act, {k / 64, n}), desc(act, {k}),
                                desc(act, {r, k}), desc(act, {n, r}), desc(act, {n}), desc(DataType::kFLOAT, {n})})
            d.push_back(one);
    }
    d.push_back(desc(act, {m, linears.back().n}));
    return d;
}

// onShapeChange() with `drop` inputs too few.
int32_t change(IPluginV3* plugin, std::vector<PluginTensorDesc> const& d, int32_t drop = 0) {
    return runtime_of(plugin)->onShapeChange(d.data(), static_cast<int32_t>(d.size()) - 1 - drop, &d.back(), 1);
}

void check_creator(IPluginCreatorV3One* creator, contract::OpRow const& op) {
    check(!std::strcmp(creator->getPluginName(), op.op_type), "creators come in the contract's order");
    check(!std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"), "creator interface");
    auto const& format = contract::kFormats[op.format];
    Values given = values(format.weight_group, format.has_unsigned, format.has_unsigned ? 0.171875f : 0.0f);
    if (op.num_linears == 2 && format.has_unsigned) given.act_unsigned[1] = 1, given.act_shift[1] = 0.25f;

    auto built = create(creator, op, given, TensorRTPhase::kBUILD);
    check(built != nullptr, "a node of the contract is created");
    if (!built) return;
    check(serialized(built.get(), op) == given, "attributes are serialized");
    std::unique_ptr<IPluginV3> clone(built->clone());
    built.reset();  // a clone owns what it serializes
    check(clone && serialized(clone.get(), op) == given, "a clone serializes the same");
    auto loaded = create(creator, op, serialized(clone.get(), op), TensorRTPhase::kRUNTIME);
    check(loaded && serialized(loaded.get(), op) == given, "the runtime phase reads what was serialized");
    check(create(creator, op, values(format.weight_group + 1, 0, 0.0f), TensorRTPhase::kRUNTIME) == nullptr,
          "a wrong group_size is refused");
    if (op.num_linears == 2) {
        given.act_unsigned[1] = 2;
        check(create(creator, op, given, TensorRTPhase::kRUNTIME) == nullptr, "a wrong fc2_act_unsigned is refused");
    }

    std::unique_ptr<IPluginV3> bare(creator->createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD));
    Values const defaults = values(format.weight_group, 0, 0.0f);
    check(bare && serialized(bare.get(), op) == defaults, "no fields: the defaults");
}

// Attention: attributes are read in any order, serialized and read again; a context checks shapes of its own.
void check_attention(IPluginCreatorV3One* creator, contract::attention::OpRow const& op) {
    check(!std::strcmp(creator->getPluginName(), op.op_type), "creators come in the contract's order");
    int32_t const counts[] = {4, 2, 0};  // heads, kv_heads, kv_part
    float const scale = 0.125f, eps = 1e-6f;
    auto const value = [&](contract::attention::Attribute a) -> void const* {
        if (a == contract::attention::kScale) return &scale;
        return a == contract::attention::kEps ? &eps : static_cast<void const*>(&counts[a]);
    };
    std::vector<PluginField> fields;
    for (int32_t i = op.num_attributes; i-- > 0;) {
        auto const& [name, is_float] = contract::attention::kAttributes[op.attributes[i]];
        fields.push_back(
            {name, value(op.attributes[i]), is_float ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1});
    }
    PluginFieldCollection const list{static_cast<int32_t>(fields.size()), fields.data()};
    std::unique_ptr<IPluginV3> built(creator->createPlugin("driver", &list, TensorRTPhase::kBUILD));
    check(built != nullptr, "an attention of the contract is created");
    if (!built) return;
    auto const* written = runtime_of(built.get())->getFieldsToSerialize();
    std::unique_ptr<IPluginV3> loaded(creator->createPlugin("driver", written, TensorRTPhase::kRUNTIME));
    check(loaded != nullptr, "an attention is created from what it serialized");
    auto const* again = loaded ? runtime_of(loaded.get())->getFieldsToSerialize() : written;
    check(again->nbFields == op.num_attributes, "every attribute of an attention is serialized");
    for (int32_t i = 0; i < again->nbFields; ++i)
        check(!std::memcmp(again->fields[i].data, value(op.attributes[i]), 4), "attributes of an attention hold");
    check(creator->createPlugin("driver", nullptr, TensorRTPhase::kBUILD) == nullptr, "no heads are refused");

    using contract::attention::Source;
    bool const joint = op.source == Source::kJoint, cross = op.source == Source::kCross;
    DataType const act = DataType::kBF16;
    std::vector<PluginTensorDesc> d{desc(act, {2, 9, cross ? 256 : 512})};
    if (cross || joint) d.push_back(desc(act, {2, 5, cross ? 768 : 512}));
    if (op.normed) d.insert(d.end(), joint ? 4 : 2, desc(act, {64}));
    if (op.rotary) d.insert(d.end(), 2, desc(DataType::kFLOAT, {joint ? 14 : 9, 64}));
    if (op.masked) d.push_back(desc(act, {2, 5}));
    std::vector<PluginTensorDesc> const out(op.num_outputs, desc(act, {2, 9, 256}));
    auto const shape = [&] {
        return runtime_of(loaded.get())
            ->onShapeChange(d.data(), static_cast<int32_t>(d.size()), out.data(), op.num_outputs);
    };
    check(shape() == 0, "shapes of the contract are taken by an attention");
    std::vector<void const*> const in(d.size());
    std::array<void*, 2> const results{};
    check(runtime_of(loaded.get())->enqueue(d.data(), out.data(), in.data(), results.data(), nullptr, nullptr) != 0,
          "an attention with null pointers fails");
    d[0].type = DataType::kFLOAT;
    check(shape() != 0, "float32 is refused by an attention");
    d[0] = desc(act, {2, 9, 511});
    check(shape() != 0, "a row that the heads do not divide is refused");
}

void check_run(IPluginV3* plugin, std::vector<PluginTensorDesc> const& good, Logger& logger) {
    std::vector<void const*> const in(good.size() - 1);
    std::array<void*, 1> const out{};
    auto const run = [&] {
        return runtime_of(plugin)->enqueue(good.data(), &good.back(), in.data(), out.data(), nullptr, nullptr);
    };
    int const before = logger.errors;
    check(run() != 0, "enqueue before onShapeChange fails");
    check(logger.errors > before, "and says why");
    check(change(plugin, good) == 0, "shapes of the contract are taken");
    check(run() != 0, "null pointers fail, they do not crash");
    check(change(plugin, good, 1) != 0, "an input too few is refused");
}

void check_shapes(IPluginCreatorV3One* int4, contract::OpRow const& op, Logger& logger) {
    auto plugin = create(int4, op, values(64, 0, 0.0f), TensorRTPhase::kRUNTIME);
    auto const good = int4_descs(9, {{128, 256, 16}}, DataType::kHALF);
    check_run(plugin.get(), good, logger);
    check(change(plugin.get(), int4_descs(0, {{128, 256, 0}}, DataType::kBF16)) == 0,
          "no tokens and no rank are taken");
    check(change(plugin.get(), int4_descs(9, {{128, 96, 16}}, DataType::kHALF)) != 0, "K = 96 is refused");
    check(change(plugin.get(), int4_descs(9, {{128, 256, 16}}, DataType::kFLOAT)) != 0, "float32 is refused");
    check(change(plugin.get(), int4_descs(int64_t{1} << 40, {{128, 256, 16}}, DataType::kHALF)) != 0,
          "more tokens than an int32 counts are refused");
    auto huge = good;
    huge[0] = desc(DataType::kHALF, {int64_t{1} << 40, int64_t{1} << 40, 256});
    check(change(plugin.get(), huge) != 0, "a token count that overflows is refused");
}

void check_gated_mlp_shapes(IPluginCreatorV3One* creator, contract::OpRow const& op, Logger& logger) {
    auto plugin = create(creator, op, values(64, 0, 0.0f), TensorRTPhase::kRUNTIME);
    auto const shapes = [](int64_t m, Shape fc1, Shape fc2) { return int4_descs(m, {fc1, fc2}, DataType::kHALF); };
    check_run(plugin.get(), shapes(9, {512, 128, 16}, {128, 256, 32}), logger);
    check(change(plugin.get(), shapes(0, {512, 128, 0}, {128, 256, 0})) == 0, "no tokens and no ranks are taken");
    check(change(plugin.get(), shapes(9, {256, 128, 16}, {128, 256, 32})) != 0, "the gate halves fc1's columns");
    check(change(plugin.get(), shapes(9, {192, 128, 16}, {128, 96, 32})) != 0, "fc2's K = 96 is refused");
    check(change(plugin.get(), shapes(9, {512, 128, 16}, {132, 256, 32})) != 0, "fc2's N = 132 is refused");
}

// Contexts are clones; each keeps its own shapes, whatever the others do.
void check_threads(IPluginCreatorV3One* int4, contract::OpRow const& op) {
    auto const engine = create(int4, op, values(64, 1, 0.25f), TensorRTPhase::kRUNTIME);
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&engine, &op, t] {
            for (int i = 0; i < 200; ++i) {
                std::unique_ptr<IPluginV3> context(runtime_of(engine.get())->attachToContext(nullptr));
                check(context != nullptr, "a context gets its clone");
                bool const good = (i + t) % 2 == 0;
                auto const d = int4_descs(1 + i, {{128, good ? 256 : 96, 16}}, DataType::kHALF);
                check((change(context.get(), d) == 0) == good, "shapes are judged for each context");
                check(serialized(context.get(), op) == values(64, 1, 0.25f), "attributes hold in every thread");
            }
        });
    }
    for (auto& thread : threads) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
    void* library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) return std::printf("FAILED dlopen: %s\n", argc == 2 ? dlerror() : "one argument"), 1;
    auto get_creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    if (!get_creators || !set_finder) return std::printf("FAILED entry points\n"), 1;

    Finder finder;
    set_finder(&finder);
    int32_t count = 0;
    auto const* creators = get_creators(count);
    int32_t const linears = static_cast<int32_t>(contract::kOps.size());
    auto const& attentions = contract::attention::kOps;
    check(count == linears + static_cast<int32_t>(attentions.size()), "one creator per op");
    check(get_creators(count) == creators, "the list does not move");
    auto const at = [&](int32_t i) { return static_cast<IPluginCreatorV3One*>(creators[i]); };
    for (int32_t i = 0; i < linears; ++i) check_creator(at(i), contract::kOps[i]);
    for (int32_t i = linears; i < count; ++i) check_attention(at(i), attentions[i - linears]);
    auto const index_of = [&](char const* op_type) {
        int32_t i = 0;
        while (i + 1 < linears && std::strcmp(contract::kOps[i].op_type, op_type) != 0) ++i;
        return i;
    };
    int32_t const linear = index_of("SVDQLinearInt4");
    check_shapes(at(linear), contract::kOps[linear], finder.logger);
    for (char const* op_type : {"SVDQMlpInt4Geglu", "SVDQMlpInt4Swiglu"}) {
        int32_t const mlp = index_of(op_type);
        check_gated_mlp_shapes(at(mlp), contract::kOps[mlp], finder.logger);
    }
    check_threads(at(linear), contract::kOps[linear]);

    auto const wrong_group = [&] {
        return create(at(linear), contract::kOps[linear], values(32, 0, 0.0f), TensorRTPhase::kBUILD);
    };
    finder.fail = true;
    check(wrong_group() == nullptr, "a logger finder that throws is survived");
    set_finder(nullptr);
    check(wrong_group() == nullptr, "no logger finder is survived");
    std::printf("%d checks failed\n", g_failures.load());
    return g_failures != 0;
}
