// What is checked of an engine folder before anything of it is deserialized or loaded.
#pragma once

#include <string>
#include <vector>

#include "host/manifest.h"
#include "host/runner.h"

namespace svdq {

struct EngineFolder {
    std::string path;
    std::string plan;        // path of the plan, whose size and digest agree with the manifest
    std::string plugin;      // path of the library to load; empty where the plan carries it, or needs none
    bool host_code = false;  // the plan's own library may run
    std::vector<Input> inputs;
};

// Read <path>/manifest.json and check, cheapest first: GPU, TensorRT release, plugin version, sizes and digests.
// Throws Error.
EngineFolder open_folder(std::string const& path, Options const& options);

}  // namespace svdq
