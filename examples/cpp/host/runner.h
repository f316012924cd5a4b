// What runs a graph, and how it is opened.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "safetensors.h"

namespace svdq {

struct Options {
    std::optional<std::string> plugin;  // a library that the user trusts; none: the folder's, needs allow_host_code
    bool allow_host_code = false;
    bool allow_arch_mismatch = false;
    std::optional<int64_t> device;  // none: 0

    int cuda_device() const { return static_cast<int>(device.value_or(0)); }
};

class Runner {
public:
    virtual ~Runner() = default;
    // Outputs by name for inputs by name, in the engine's dtypes and within its profile. Throws Error.
    virtual Tensors run(Tensors const& inputs) = 0;
};

// Opens an engine folder. Throws Error.
using OpenEngine = std::function<std::unique_ptr<Runner>(std::string const& folder, Options const& options)>;

}  // namespace svdq
