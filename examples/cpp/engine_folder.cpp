#include "engine_folder.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include "host/error.h"
#include "host/files.h"

namespace svdq {
namespace {

// A name from the manifest leads nowhere but into the folder.
std::string inside(std::string const& folder, std::string const& name) {
    return folder + "/" + name.substr(name.find_last_of('/') + 1);
}

std::string tensorrt_release() {
    return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
           std::to_string(getInferLibPatchVersion()) + "." + std::to_string(getInferLibBuildVersion());
}

void check_arch(std::string const& folder, std::string const& arch, Options const& options) {
    cudaDeviceProp gpu{};
    cudaError_t const code = cudaGetDeviceProperties(&gpu, options.cuda_device());
    if (code != cudaSuccess) {
        throw Error("CUDA device " + std::to_string(options.cuda_device()), cudaGetErrorString(code), "an NVIDIA GPU");
    }
    std::string const here = "sm_" + std::to_string(gpu.major * 10 + gpu.minor);
    if (arch != here && !options.allow_arch_mismatch) throw Error(folder, "a plan for " + arch, "one for " + here);
}

// Before its creators are asked for: does the library have the C API, and of which version?
void check_plugin(std::string const& path, std::string const& want) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw Error("plugin library", dlerror(), "a library of svdq-trt");
    auto version = reinterpret_cast<char const* (*)()>(dlsym(library, "svdq_version"));
    std::string const got = version ? version() : "none";
    if (got != want) throw Error(path, "plugin version " + got, want + ", which the plan was built with");
}

// The library to load: the one given, or the folder's if it is allowed.
void choose_plugin(EngineFolder& folder, Json const& plugin, std::string const& where, Options const& options) {
    folder.host_code = member_as<bool>(plugin, "embedded", where);
    if (folder.host_code) {  // TensorRT-RTX 1.6 loads it whether it is allowed or not
        if (!options.allow_host_code) {
            throw Error(folder.path, "a plan that carries machine code, its plugin library",
                        "a plan without, which svdq-trt finish makes, or --allow-host-code if you trust it");
        }
        return;
    }
    folder.plugin = options.plugin.value_or("");
    if (!options.plugin) {
        if (!options.allow_host_code) {
            throw Error(folder.path, "a plugin library of its own, and none given",
                        "--plugin LIBRARY, or --allow-host-code to run the folder's");
        }
        folder.plugin = inside(folder.path, member_as<std::string>(plugin, "file", where));
        check_digest(folder.plugin, member_as<std::string>(plugin, "sha256", where));
    }
    check_plugin(folder.plugin, member_as<std::string>(plugin, "version", where));
}

}  // namespace

EngineFolder open_folder(std::string const& path, Options const& options) {
    Manifest const manifest = read_manifest(path);
    std::string const& where = manifest.path;
    Json::object_t const plan = member_or<Json::object_t>(manifest.data, "plan", where, {});
    if (plan.empty()) throw Error(path, "no plan yet (the build was incomplete)", "model.plan");
    if (member_as<std::string>(plan, "file", where).empty()) {
        throw Error(path, "a plan in pieces, of --step-cache", "model.plan");
    }

    check_arch(path, member_as<std::string>(manifest.data, "arch", where), options);
    Json const& backend = member(manifest.data, "backend", where);
    auto const release = member_as<std::string>(backend, "version", where);
    if (release != tensorrt_release()) {
        throw Error(path, "a plan of " + member_as<std::string>(backend, "name", where) + " " + release,
                    tensorrt_release() + ", the release that is linked");
    }

    EngineFolder folder{path, inside(path, member_as<std::string>(plan, "file", where)), "", false, manifest.inputs};
    Json::object_t const plugin = member_or<Json::object_t>(manifest.data, "plugin", where, {});
    if (!plugin.empty()) choose_plugin(folder, plugin, where, options);
    check_file(folder.plan, member_as<int64_t>(plan, "bytes", where), member_as<std::string>(plan, "sha256", where));
    return folder;
}

}  // namespace svdq
