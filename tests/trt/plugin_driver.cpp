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

struct Values {
    int32_t group_size, act_unsigned;
    float act_shift;
    bool operator==(Values const& o) const {
        return group_size == o.group_size && act_unsigned == o.act_unsigned && act_shift == o.act_shift;
    }
};

std::unique_ptr<IPluginV3> create(IPluginCreatorV3One* creator, Values const& v, TensorRTPhase phase) {
    std::array<PluginField, 4> const fields{{{"act_shift", &v.act_shift, PluginFieldType::kFLOAT32, 1},
                                             {"unknown", &v, PluginFieldType::kUNKNOWN, 1},
                                             {"group_size", &v.group_size, PluginFieldType::kINT32, 1},
                                             {"act_unsigned", &v.act_unsigned, PluginFieldType::kINT32, 1}}};
    PluginFieldCollection const list{4, fields.data()};
    return std::unique_ptr<IPluginV3>(creator->createPlugin("driver", &list, phase));
}

// What the plan would hold.
Values serialized(IPluginV3* plugin) {
    Values v{-1, -1, -1};
    auto const* list = runtime_of(plugin)->getFieldsToSerialize();
    check(list && list->nbFields == 3, "three fields are serialized");
    for (int32_t i = 0; list && i < list->nbFields; ++i) {
        PluginField const& f = list->fields[i];
        check(f.length == 1, "a field holds one number");
        if (!std::strcmp(f.name, "group_size")) v.group_size = *static_cast<int32_t const*>(f.data);
        if (!std::strcmp(f.name, "act_unsigned")) v.act_unsigned = *static_cast<int32_t const*>(f.data);
        if (!std::strcmp(f.name, "act_shift")) v.act_shift = *static_cast<float const*>(f.data);
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

// The inputs and the output of an int4 node without activation.
std::array<PluginTensorDesc, 9> int4_descs(int64_t m, int64_t n, int64_t k, int64_t r, DataType act) {
    return {desc(act, {m, k}),      desc(DataType::kINT8, {n, k / 2}),
            desc(act, {k / 64, n}), desc(act, {k}),
            desc(act, {r, k}),      desc(act, {n, r}),
            desc(act, {n}),         desc(DataType::kFLOAT, {n}),
            desc(act, {m, n})};
}

int32_t change(IPluginV3* plugin, std::array<PluginTensorDesc, 9> const& d, int32_t inputs = 8) {
    return runtime_of(plugin)->onShapeChange(d.data(), inputs, d.data() + 8, 1);
}

void check_creator(IPluginCreatorV3One* creator, contract::OpRow const& op) {
    check(!std::strcmp(creator->getPluginName(), op.op_type), "creators come in the contract's order");
    check(!std::strcmp(creator->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE"), "creator interface");
    auto const& format = contract::kFormats[op.format];
    Values const values{format.weight_group, format.has_unsigned, format.has_unsigned ? 0.171875f : 0.0f};

    auto built = create(creator, values, TensorRTPhase::kBUILD);
    check(built != nullptr, "a node of the contract is created");
    if (!built) return;
    check(serialized(built.get()) == values, "attributes are serialized");
    std::unique_ptr<IPluginV3> clone(built->clone());
    built.reset();  // a clone owns what it serializes
    check(clone && serialized(clone.get()) == values, "a clone serializes the same");
    auto loaded = create(creator, serialized(clone.get()), TensorRTPhase::kRUNTIME);
    check(loaded && serialized(loaded.get()) == values, "the runtime phase reads what was serialized");
    check(create(creator, {format.weight_group + 1, 0, 0.0f}, TensorRTPhase::kRUNTIME) == nullptr,
          "a wrong group_size is refused");

    std::unique_ptr<IPluginV3> bare(creator->createPlugin(nullptr, nullptr, TensorRTPhase::kBUILD));
    check(bare && serialized(bare.get()) == Values{format.weight_group, 0, 0.0f}, "no fields: the defaults");
}

void check_shapes(IPluginCreatorV3One* int4, Logger& logger) {
    auto plugin = create(int4, {64, 0, 0.0f}, TensorRTPhase::kRUNTIME);
    std::array<void const*, 8> in{};
    std::array<void*, 1> out{};
    auto const good = int4_descs(9, 128, 256, 16, DataType::kHALF);
    auto const run = [&] {
        return runtime_of(plugin.get())
            ->enqueue(good.data(), good.data() + 8, in.data(), out.data(), nullptr, nullptr);
    };
    int const before = logger.errors;
    check(run() != 0, "enqueue before onShapeChange fails");
    check(logger.errors > before, "and says why");
    check(change(plugin.get(), good) == 0, "shapes of the contract are taken");
    check(run() != 0, "null pointers fail, they do not crash");
    check(change(plugin.get(), int4_descs(0, 128, 256, 0, DataType::kBF16)) == 0,
          "no tokens and no rank are taken");
    check(change(plugin.get(), good, 7) != 0, "seven inputs are refused");
    check(change(plugin.get(), int4_descs(9, 128, 96, 16, DataType::kHALF)) != 0, "K = 96 is refused");
    check(change(plugin.get(), int4_descs(9, 128, 256, 16, DataType::kFLOAT)) != 0, "float32 is refused");
    check(change(plugin.get(), int4_descs(int64_t{1} << 40, 128, 256, 16, DataType::kHALF)) != 0,
          "more tokens than an int32 counts are refused");
    auto huge = good;
    huge[0] = desc(DataType::kHALF, {int64_t{1} << 40, int64_t{1} << 40, 256});
    check(change(plugin.get(), huge) != 0, "a token count that overflows is refused");
}

// Contexts are clones; each keeps its own shapes, whatever the others do.
void check_threads(IPluginCreatorV3One* int4) {
    auto const engine = create(int4, {64, 1, 0.25f}, TensorRTPhase::kRUNTIME);
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; ++t) {
        threads.emplace_back([&engine, t] {
            for (int i = 0; i < 200; ++i) {
                std::unique_ptr<IPluginV3> context(runtime_of(engine.get())->attachToContext(nullptr));
                check(context != nullptr, "a context gets its clone");
                bool const good = (i + t) % 2 == 0;
                auto const d = int4_descs(1 + i, 128, good ? 256 : 96, 16, DataType::kHALF);
                check((change(context.get(), d) == 0) == good, "shapes are judged for each context");
                check(serialized(context.get()) == Values{64, 1, 0.25f}, "attributes hold in every thread");
            }
        });
    }
    for (auto& thread : threads) thread.join();
}

}  // namespace

int main(int argc, char** argv) {
    void* library = argc == 2 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
    if (!library) return std::printf("FAILED dlopen: %s\n", argc == 2 ? dlerror() : "one argument"), 1;
    auto get_creators =
        reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
    auto set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
    if (!get_creators || !set_finder) return std::printf("FAILED entry points\n"), 1;

    Finder finder;
    set_finder(&finder);
    int32_t count = 0;
    auto const* creators = get_creators(count);
    check(count == static_cast<int32_t>(contract::kOps.size()), "one creator per op");
    check(get_creators(count) == creators, "the list does not move");
    auto const at = [&](int32_t i) { return static_cast<IPluginCreatorV3One*>(creators[i]); };
    for (int32_t i = 0; i < count; ++i) check_creator(at(i), contract::kOps[i]);
    check_shapes(at(0), finder.logger);
    check_threads(at(0));

    finder.fail = true;
    check(create(at(0), {32, 0, 0.0f}, TensorRTPhase::kBUILD) == nullptr,
          "a logger finder that throws is survived");
    set_finder(nullptr);
    check(create(at(0), {32, 0, 0.0f}, TensorRTPhase::kBUILD) == nullptr, "no logger finder is survived");
    std::printf("%d checks failed\n", g_failures.load());
    return g_failures != 0;
}
