// svdq_run: runs an engine folder once on tensors from a file.
#include <cstdio>

#include "engine_folder.h"
#include "host/arguments.h"
#include "host/safetensors.h"
#include "session.h"

int main(int argc, char** argv) {
    svdq::Options options;
    std::optional<int64_t> repeat;
    svdq::Program program{"svdq_run",
                          {"ENGINE_DIR", "INPUTS.safetensors", "OUTPUTS.safetensors"},
                          "Runs an engine folder once on the tensors of a file, by the names of its inputs.",
                          svdq::engine_arguments(options)};
    program.arguments.push_back(svdq::whole("--repeat", "N", repeat, 0, 1'000'000, "time N more runs"));
    return program.run(argc, argv, [&](std::vector<std::string> const& files) {
        svdq::EngineFolder const folder = svdq::open_folder(files[0], options);
        svdq::Tensors const inputs = svdq::read_safetensors(files[1]);
        svdq::Session session(folder, options);
        svdq::write_safetensors(files[2], session.run(inputs));
        if (repeat.value_or(0)) std::printf("%.4f ms a run\n", session.milliseconds(*repeat));
    });
}
