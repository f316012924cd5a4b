#include "engine_folder.h"

#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/stat.h>

#include <fstream>
#include <sstream>

#include "error.h"
#include "json.h"
#include "sha256.h"

namespace svdq {
namespace {

std::string read_text(std::string const& path) {
    std::ifstream file(path, std::ios::binary);
    std::ostringstream text;
    text << file.rdbuf();
    if (!file) throw Error(path, "cannot be read", "an engine manifest");
    return text.str();
}

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
    cudaError_t const code = cudaGetDeviceProperties(&gpu, options.device);
    if (code != cudaSuccess) {
        throw Error("CUDA device " + std::to_string(options.device), cudaGetErrorString(code), "an NVIDIA GPU");
    }
    std::string const here = "sm_" + std::to_string(gpu.major * 10 + gpu.minor);
    if (arch != here && !options.allow_arch_mismatch) throw Error(folder, "a plan for " + arch, "one for " + here);
}

void check_digest(std::string const& path, std::string const& want) {
    if (sha256_of_file(path) != want) throw Error(path, "another SHA-256 than the manifest's", want);
}

// Before its creators are asked for: does the library have the C API, and of which version?
void check_plugin(std::string const& path, std::string const& want) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) throw Error("plugin library", dlerror(), "a library of svdq-trt");
    auto version = reinterpret_cast<char const* (*)()>(dlsym(library, "svdq_version"));
    std::string const got = version ? version() : "none";
    if (got != want) throw Error(path, "plugin version " + got, want + ", which the plan was built with");
}

}  // namespace

EngineFolder open_folder(std::string const& path, Options const& options) {
    std::string const where = path + "/manifest.json";
    Json const manifest = Json::parse(read_text(where), where);
    if (manifest.at("version").integer() != 1) throw Error(where, "another version", "1");
    Json const &plan = manifest.at("plan"), &plugin = manifest.at("plugin");
    if (plan.object().empty()) throw Error(path, "no plan yet (the build was incomplete)", "model.plan");

    check_arch(path, manifest.at("arch").string(), options);
    std::string const release = manifest.at("backend").at("version").string();
    if (release != tensorrt_release()) {
        throw Error(path, "a plan of " + manifest.at("backend").at("name").string() + " " + release,
                    tensorrt_release() + ", the release that is linked");
    }

    EngineFolder folder{path, inside(path, plan.at("file").string()), options.plugin, false, read_inputs(manifest)};
    bool const embedded = plugin.at("embedded").boolean();
    if (options.plugin.empty() && !options.allow_host_code) {
        throw Error(path, "a plugin library of its own, and none given",
                    "--plugin LIBRARY, or --allow-host-code to run the folder's");
    }
    if (options.plugin.empty()) {
        folder.host_code = embedded;
        folder.plugin = embedded ? "" : inside(path, plugin.at("file").string());
        if (!embedded) check_digest(folder.plugin, plugin.at("sha256").string());
    }
    if (!folder.plugin.empty()) check_plugin(folder.plugin, plugin.at("version").string());

    struct stat status{};
    if (stat(folder.plan.c_str(), &status) != 0) throw Error(folder.plan, "missing", "the plan");
    if (status.st_size != plan.at("bytes").integer()) {
        throw Error(folder.plan, std::to_string(status.st_size) + " bytes",
                    std::to_string(plan.at("bytes").integer()) + " bytes");
    }
    check_digest(folder.plan, plan.at("sha256").string());
    return folder;
}

}  // namespace svdq
