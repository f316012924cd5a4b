// An engine folder's manifest, and what is checked before anything of the folder is deserialized or loaded.
#pragma once

#include <string>
#include <vector>

#include "inputs.h"

namespace svdq {

struct Options {
    std::string plugin;  // a plugin library that the user trusts; empty: the folder's, which needs allow_host_code
    bool allow_host_code = false;
    bool allow_arch_mismatch = false;
    int device = 0;
};

struct EngineFolder {
    std::string path;
    std::string plan;        // path of the plan, whose size and digest agree with the manifest
    std::string plugin;      // path of the library to load; empty where the plan carries it
    bool host_code = false;  // the plan's own library may run
    std::vector<Input> inputs;
};

// Read <path>/manifest.json and check, cheapest first: GPU, TensorRT release, plugin version, sizes and digests.
// Throws Error.
EngineFolder open_folder(std::string const& path, Options const& options);

}  // namespace svdq
