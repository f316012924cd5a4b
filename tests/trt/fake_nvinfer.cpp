// A libnvinfer.so of release MAJOR with nothing in it but a plugin registry whose functions stand in that release's
// order. Each prints its name, so that a call through a wrong slot shows.
#include <cstdint>
#include <cstdio>

namespace {

struct Registry {
#if MAJOR == 10
    virtual bool registerCreatorV2(void*, char const*) noexcept { return called("registerCreatorV2"); }
    virtual void* getPluginCreatorList(int32_t*) const noexcept { return called("getPluginCreatorList"), nullptr; }
    virtual void* getPluginCreator(char const*, char const*, char const*) noexcept {
        return called("getPluginCreator"), nullptr;
    }
#endif
    virtual ~Registry() noexcept = default;
    virtual void setErrorRecorder(void*) noexcept { called("setErrorRecorder"); }
    virtual void* getErrorRecorder() const noexcept { return called("getErrorRecorder"), nullptr; }
#if MAJOR == 10
    virtual bool deregisterCreatorV2(void const*) noexcept { return called("deregisterCreatorV2"); }
#endif
    virtual bool isParentSearchEnabled() const { return called("isParentSearchEnabled"); }
    virtual void setParentSearchEnabled(bool) { called("setParentSearchEnabled"); }
    virtual void* loadLibrary(char const* path) noexcept {
        std::printf("loadLibrary %s\n", path);
        return this;
    }
    virtual void deregisterLibrary(void*) noexcept { called("deregisterLibrary"); }

    static bool called(char const* name) { return std::printf("%s\n", name) < 0; }
};

}  // namespace

extern "C" void* getPluginRegistry() {
    static Registry registry;
    return &registry;
}

extern "C" int getInferLibMajorVersion() { return MAJOR; }
