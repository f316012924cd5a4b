// svdq_run: runs an engine folder once on tensors from a file.
//
//   svdq_run ENGINE_DIR INPUTS.safetensors OUTPUTS.safetensors [options]
//
//   --plugin LIBRARY        the plugin library to load (libsvdq_trt_plugin.so of an installed svdq-trt)
//   --allow-host-code       run the library that the folder brings; only for folders you trust
//   --allow-arch-mismatch   try a plan made for another GPU
//   --device N              CUDA device, default 0
//   --repeat N              time N more runs
//
// Exit codes as svdq-trt: 0 done, 1 bad input, 2 bad arguments.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "engine_folder.h"
#include "error.h"
#include "safetensors.h"
#include "session.h"

namespace {

int usage(char const* got) {
    std::fprintf(stderr,
                 "svdq_run: %s. Usage: svdq_run ENGINE_DIR INPUTS.safetensors OUTPUTS.safetensors [--plugin LIBRARY] "
                 "[--allow-host-code] [--allow-arch-mismatch] [--device N] [--repeat N]\n",
                 got);
    return 2;
}

// A whole number from 0 to 1,000,000, or -1.
int number(char const* text) {
    char* end = nullptr;
    long const value = std::strtol(text, &end, 10);
    return *text && !*end && value >= 0 && value <= 1'000'000 ? static_cast<int>(value) : -1;
}

void run(std::vector<std::string> const& files, svdq::Options const& options, int repeat) {
    svdq::EngineFolder const folder = svdq::open_folder(files[0], options);
    svdq::Tensors const inputs = svdq::read_safetensors(files[1]);
    svdq::Session session(folder, options);
    svdq::write_safetensors(files[2], session.run(inputs));
    if (repeat) std::printf("%.4f ms a run\n", session.milliseconds(repeat));
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<std::string> files;
    svdq::Options options;
    int repeat = 0;
    for (int i = 1; i < argc; ++i) {
        std::string const word = argv[i];
        if (word == "--allow-host-code") {
            options.allow_host_code = true;
        } else if (word == "--allow-arch-mismatch") {
            options.allow_arch_mismatch = true;
        } else if (word == "--plugin" || word == "--device" || word == "--repeat") {
            if (++i == argc) return usage((word + " without a value").c_str());
            if (word == "--plugin") {
                options.plugin = argv[i];
                continue;
            }
            int const value = number(argv[i]);
            if (value < 0) return usage((word + " " + argv[i] + ", want a number").c_str());
            (word == "--device" ? options.device : repeat) = value;
        } else if (word.compare(0, 2, "--") == 0) {
            return usage(("unknown option " + word).c_str());
        } else {
            files.push_back(word);
        }
    }
    if (files.size() != 3) return usage((std::to_string(files.size()) + " files, want 3").c_str());
    try {
        run(files, options, repeat);
    } catch (std::exception const& error) {
        std::fprintf(stderr, "svdq_run: %s\n", error.what());
        return 1;
    }
    return 0;
}
