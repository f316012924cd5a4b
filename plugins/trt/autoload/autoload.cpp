// libsvdq_trt_autoload.so: opened by a process that runs TensorRT, it registers the plugin that lies beside it.
//
// Some programs load plugin libraries by nothing but dlopen (Triton's --backend-config=tensorrt,plugins=..., trtexec's
// --staticPlugins): a library must register itself there. libsvdq_trt_plugin.so cannot: it needs no TensorRT library,
// so that one file serves TensorRT and TensorRT-RTX, and where IPluginRegistry::loadLibrary() opens it or a plan brings
// it along, it would be registered twice. So this library looks for the TensorRT that the process has already loaded
// and asks its registry to load the other one.
//
// No TensorRT header and no C++ runtime: of IPluginRegistry only one slot of the vtable is used, and where that is
// depends on the release (tests/trt/test_autoload.py).
#include <dlfcn.h>
#include <link.h>

#include <climits>
#include <cstdio>
#include <cstring>

namespace {

constexpr char kPlugin[] = "libsvdq_trt_plugin.so";
// The core libraries, as the beginning of a file name; libnvinfer_plugin.so and the like do not match.
constexpr char const* kCores[] = {"libnvinfer.so", "libtensorrt_rtx.so"};

// Slot of IPluginRegistry::loadLibrary in the vtable, Itanium C++ ABI. TensorRT 11 dropped four functions before it.
constexpr int kSlot10 = 10;
constexpr int kSlot11 = 6;

// A TensorRT that is loaded in this process.
struct Core {
    char path[PATH_MAX];
    bool rtx;
};

void say(char const* what, char const* detail) {
    std::fprintf(stderr, "libsvdq_trt_autoload.so: %s%s. The svdq plugin is not registered.\n", what, detail);
}

int find_core(dl_phdr_info* info, size_t, void* found) {
    auto& core = *static_cast<Core*>(found);
    char const* slash = std::strrchr(info->dlpi_name, '/');
    char const* name = slash ? slash + 1 : info->dlpi_name;
    for (char const* prefix : kCores) {
        if (std::strncmp(name, prefix, std::strlen(prefix)) == 0 && std::strlen(info->dlpi_name) < PATH_MAX) {
            std::strcpy(core.path, info->dlpi_name);
            core.rtx = prefix == kCores[1];
            return 1;
        }
    }
    return 0;
}

template <class Function>
Function symbol(void* library, char const* name) {
    return reinterpret_cast<Function>(dlsym(library, name));
}

// -1 for a release whose vtable nobody has looked at: a wrong slot would call another function.
int slot_of(Core const& core, void* library) {
    auto major = symbol<int (*)()>(library, "getInferLibMajorVersion");
    if (!major) return -1;
    int const release = major();
    if (core.rtx) return release == 1 ? kSlot11 : -1;
    return release == 10 ? kSlot10 : release == 11 ? kSlot11 : -1;
}

bool path_beside_this_library(char (&path)[PATH_MAX]) {
    Dl_info here;
    if (!dladdr(reinterpret_cast<void*>(&path_beside_this_library), &here)) return false;
    char const* slash = std::strrchr(here.dli_fname, '/');
    size_t const folder = slash ? static_cast<size_t>(slash - here.dli_fname) + 1 : 0;
    if (folder + sizeof kPlugin > PATH_MAX) return false;
    std::memcpy(path, here.dli_fname, folder);
    std::memcpy(path + folder, kPlugin, sizeof kPlugin);
    return true;
}

__attribute__((constructor)) void register_plugin() {
    Core core{};
    dl_iterate_phdr(find_core, &core);
    if (!core.path[0]) return say("no TensorRT in this process", "");
    void* library = dlopen(core.path, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return say("cannot open ", core.path);
    auto registry_of = symbol<void* (*)()>(library, "getPluginRegistry");
    int const slot = slot_of(core, library);
    char plugin[PATH_MAX];
    if (!registry_of || slot < 0) {
        say("unknown release of TensorRT: ", core.path);
    } else if (!path_beside_this_library(plugin)) {
        say("no folder of its own", "");
    } else {
        void* registry = registry_of();
        using LoadLibrary = void* (*)(void*, char const*);
        auto load = (*static_cast<LoadLibrary**>(registry))[slot];
        if (!load(registry, plugin)) say("TensorRT refused ", plugin);
    }
    dlclose(library);
}

}  // namespace
