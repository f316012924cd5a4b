#include "text_to_image.h"

#include <cstdio>

#include "arguments.h"
#include "pipeline.h"

namespace svdq {
namespace {

constexpr char const* kAbout =
    R"(Makes a picture of a prompt with the engines of a StableDiffusionXLPipeline or a FluxPipeline: a folder that
svdq-trt build --pipeline wrote. Steps and guidance are diffusers' defaults unless they are given, width and height
those that the engines are tuned for.

The noise of a seed is this program's own: PyTorch makes other numbers of it. --noise takes them from a file: a tensor
'latents', as diffusers' argument of that name, which for FLUX is packed.)";

constexpr int64_t kMostPixels = 1 << 20;  // of a side
constexpr int64_t kMostSeed = int64_t{1} << 62;

Generated generate(std::string const& path, OpenEngine const& open, Options const& options, Request const& request) {
    PipelineFolder const folder(path);
    if (folder.class_name() == "StableDiffusionXLPipeline") return stable_diffusion_xl(folder, open, options, request);
    if (folder.class_name() == "FluxPipeline") return flux(folder, open, options, request);
    throw Error(path, "a " + folder.class_name().substr(0, 80), "a StableDiffusionXLPipeline or a FluxPipeline");
}

}  // namespace

int text_to_image(int argc, char** argv, OpenEngine const& open) {
    Options options;
    Request request;
    std::optional<std::string> prompt, out, latents;
    Program program{"text_to_image",
                    {"FOLDER"},
                    kAbout,
                    {
                        text("--prompt", "TEXT", prompt, "what to make a picture of"),
                        text("--out", "FILE.png", out, "where the picture goes"),
                        text("--negative", "TEXT", request.negative, "what to keep away from; not for FLUX"),
                        whole("--steps", "N", request.steps, 1, 1'000'000, "of denoising"),
                        number("--guidance", "G", request.guidance, "scale of the guidance"),
                        whole("--seed", "N", request.seed, 0, kMostSeed, "of the noise, default 0"),
                        whole("--width", "PIXELS", request.width, 1, kMostPixels, "of the picture"),
                        whole("--height", "PIXELS", request.height, 1, kMostPixels, "of the picture"),
                        text("--noise", "FILE.safetensors", request.noise, "the noise to start from"),
                        text("--latents", "FILE.safetensors", latents, "where the last step's latents go"),
                    }};
    for (Argument const& one : engine_arguments(options)) program.arguments.push_back(one);
    return program.run(argc, argv, [&](std::vector<std::string> const& files) {
        if (!prompt || !out) throw UsageError(prompt ? "no --out" : "no --prompt");
        request.prompt = *prompt;
        Generated const made = generate(files[0], open, options, request);
        if (latents) write_safetensors(*latents, {{"latents", made.latents}});
        write_png(*out, made.picture);
        std::printf("%s\n", out->c_str());
    });
}

}  // namespace svdq
