#include "pipeline.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <random>

#include "numbers.h"

namespace svdq {
namespace {

constexpr double kScalingFactor = 0.18215;  // diffusers' default

// An opened engine, and the seconds since all began to be opened.
struct Opened {
    std::unique_ptr<Runner> runner;
    double seconds;
};

// "engines opened in 3.20 s: text_encoder 0.41 s, unet 3.20 s".
void say_opened(std::map<std::string, double> const& seconds) {
    std::string parts;
    double longest = 0;
    char text[32];
    for (auto const& [component, one] : seconds) {
        std::snprintf(text, sizeof text, " %.2f s", one);
        parts += (parts.empty() ? "" : ", ") + component + text;
        longest = std::max(longest, one);
    }
    std::fprintf(stderr, "engines opened in %.2f s: %s\n", longest, parts.c_str());
}

// Folders of a component's engines by their names: an autoencoder has two.
void add_engines(std::map<std::string, std::string>& engines, std::string const& component,
                 std::set<std::string> const& classes) {
    if (classes.count("AutoencoderKL")) {
        for (char const* half : {"decoder", "encoder"}) {
            engines[component + "_" + half] = component + "_" + half;
        }
    } else if (component.rfind("text_encoder", 0) == 0) {
        engines[component] = component;
    }
}

}  // namespace

Parts::Parts(PipelineFolder const& folder, std::string const& denoiser, Classes const& classes,
             std::set<std::string> const& inputs)
    : folder_(folder), denoiser_(denoiser) {
    std::map<std::string, std::string> engines{{denoiser, "."}};
    for (auto const& [component, known] : classes) {
        std::string const got = folder.class_of(component);
        if (!known.count(got)) {
            throw Error(folder.file("model_index.json") + ": " + component,
                        got.empty() ? "none" : "a " + got.substr(0, 80), "a " + *known.begin());
        }
        add_engines(engines, component, known);
        if (component.rfind("tokenizer", 0) == 0) tokenizers_[component] = read_tokenizer(folder, component);
    }
    for (auto const& one : folder.index().items()) {
        bool const known = one.key() == denoiser || classes.count(one.key());
        if (!known && !folder.class_of(one.key()).empty()) {
            throw Error(folder.file("model_index.json"), "an unknown " + one.key().substr(0, 80),
                        "the components of a " + folder.class_name());
        }
    }
    folder.require_engines(engines);
    Manifest const& manifest = folder.manifest(denoiser);
    if (!member_or<Json::object_t>(manifest.data, "lora_slots", manifest.path, {}).empty()) {
        throw Error(folder.engine_path(denoiser), "an engine with LoRA slots", "one without");
    }
    for (Input const& input : manifest.inputs) {
        if (!inputs.count(input.name)) {
            throw Error(folder.engine_path(denoiser), "an input '" + input.name + "'", "an engine for text alone");
        }
    }
}

void Parts::open(OpenEngine const& open, Options const& options) {
    auto const started = std::chrono::steady_clock::now();
    std::map<std::string, std::future<Opened>> opening;  // which wait for their threads where one of them throws
    for (std::string const& component : folder_.components()) {
        if (component == "vae_encoder") continue;
        opening[component] = std::async(std::launch::async, [&, path = folder_.engine_path(component)] {
            auto runner = open(path, options);
            std::chrono::duration<double> const taken = std::chrono::steady_clock::now() - started;
            return Opened{std::move(runner), taken.count()};
        });
    }
    std::map<std::string, double> seconds;
    for (auto& [component, one] : opening) {
        Opened opened = one.get();
        runners_[component] = std::move(opened.runner);
        seconds[component] = opened.seconds;
    }
    say_opened(seconds);
}

Tensors Parts::run(std::string const& component, Tensors const& inputs) const {
    return runners_.at(component)->run(inputs);
}

bool Parts::has_input(std::string const& component, std::string const& name) const {
    auto const& inputs = folder_.manifest(component).inputs;
    return std::any_of(inputs.begin(), inputs.end(), [&](Input const& one) { return one.name == name; });
}

Input const& Parts::input(std::string const& component, std::string const& name) const {
    auto const& inputs = folder_.manifest(component).inputs;
    auto const found = std::find_if(inputs.begin(), inputs.end(), [&](Input const& one) { return one.name == name; });
    if (found == inputs.end()) throw Error(folder_.engine_path(component), "no input '" + name + "'", "one");
    return *found;
}

float Parts::scaling_factor() const {
    return static_cast<float>(member_or(vae(), "scaling_factor", "vae/config.json", kScalingFactor));
}

int64_t Parts::latent_scale() const {
    std::string const where = "vae/config.json";
    auto const levels = member_as<Json::array_t>(vae(), "block_out_channels", where).size();
    if (levels < 1 || levels > 16) throw Error(where, "block_out_channels", "a list of some numbers");
    return int64_t{1} << (levels - 1);
}

std::optional<int64_t> Parts::tuned_pixels(std::string const& side) const {
    Manifest const& manifest = folder_.manifest(denoiser_);
    std::string const where = manifest.path + ": config";
    Json const config = member_or<Json::object_t>(manifest.data, "config", manifest.path, {});
    Json const range = member_or<Json::object_t>(config, side, where, {});
    if (range.empty()) return {};
    auto const pixels = member_as<int64_t>(range, "opt", where + ": " + side);
    if (pixels < 1) throw Error(where + ": " + side, std::to_string(pixels), "at least 1 pixel");
    return pixels;
}

void Parts::add_input(Tensors& inputs, std::string const& component, std::string const& name, std::vector<float> values,
                      std::vector<int64_t> shape, Float type) const {
    shape.push_back(static_cast<int64_t>(values.size() / element_count(shape)));
    check_shape(input(component, name), shape);
    round_all(values, type);
    inputs[name] = tensor_of(values, shape, input(component, name).dtype);
}

Encoded Parts::tokens(std::string const& tokenizer, std::string const& encoder, std::string const& text) const {
    Input const& ids = input(encoder, "input_ids");
    if (ids.high.size() != 2) throw Error(encoder, "input_ids of other sizes", "[batch, tokens]");
    return tokenizers_.at(tokenizer)->encode(text, static_cast<size_t>(ids.high[1]));
}

Tensor const& output_of(Tensors const& outputs, std::string const& name) {
    auto const found = outputs.find(name);
    if (found == outputs.end()) throw Error("engine", "no output '" + name + "'", "one");
    return found->second;
}

void check_text(char const* name, std::vector<Encoded> const& encoded) {
    auto const dropped = [](Encoded const& one) { return one.needed > one.ids.size(); };
    if (!std::all_of(encoded.begin(), encoded.end(), dropped)) return;
    auto const longest = std::max_element(
        encoded.begin(), encoded.end(), [](Encoded const& a, Encoded const& b) { return a.ids.size() < b.ids.size(); });
    throw Error(name, std::to_string(longest->needed) + " tokens", "at most " + std::to_string(longest->ids.size()));
}

Tensor ids_tensor(std::vector<int64_t> const& ids, Input const& input) {
    return whole_tensor_of(ids, {1, static_cast<int64_t>(ids.size())}, input.dtype);
}

LatentSize latent_size(Parts const& parts, Request const& request, Sides const& tuned, int64_t unit) {
    Input const& latent = parts.input("vae_decoder", "latent");
    if (latent.best.size() != 4) throw Error("vae_decoder", "a latent of other sizes", "[batch, channels, H, W]");
    LatentSize size{latent.best[1], tuned.height, tuned.width, parts.latent_scale()};
    auto const take = [&](char const* name, std::optional<int64_t> const& pixels, int64_t& to) {
        int64_t const step = unit * size.scale, got = pixels.value_or(to * size.scale);
        if (got < 1 || got % step) {
            throw Error(name, std::to_string(got), "a positive multiple of " + std::to_string(step));
        }
        to = got / size.scale;
    };
    take("width", request.width, size.width);
    take("height", request.height, size.height);
    return size;
}

void check_decoder(Parts const& parts, LatentSize const& size) {
    Input const& latent = parts.input("vae_decoder", "latent");
    auto const check = [&](char const* name, int64_t side, int64_t most) {
        if (side <= most) return;
        throw Error(name, std::to_string(side * size.scale),
                    "at most " + std::to_string(most * size.scale) + ", a tile of the autoencoder's engine",
                    "Use svdq-trt run, which works by tiles, or build with a larger --vae-tile.");
    };
    check("width", size.width, latent.high[3]);
    check("height", size.height, latent.high[2]);
    check_shape(latent, {1, size.channels, size.height, size.width});
}

std::vector<float> noise_of(Request const& request, std::vector<int64_t> const& shape, Float type) {
    std::vector<float> values(element_count(shape));
    if (request.noise) {
        Tensors const file = read_safetensors(*request.noise);
        auto const found = file.find("latents");
        if (found == file.end()) throw Error(*request.noise, "no tensor 'latents'", "the noise to start from");
        if (found->second.shape != shape) throw Error(*request.noise, text_of(found->second.shape), text_of(shape));
        values = values_of(found->second);
    } else {
        std::mt19937_64 bits(static_cast<uint64_t>(request.seed.value_or(0)));
        std::normal_distribution<float> normal;
        for (float& value : values) value = normal(bits);
    }
    round_all(values, type);
    return values;
}

Picture decode(Parts const& parts, std::vector<float> const& latents, LatentSize const& size) {
    Input const& latent = parts.input("vae_decoder", "latent");
    std::vector<int64_t> const shape = {1, size.channels, size.height, size.width};
    Tensors const outputs = parts.run("vae_decoder", {{"latent", tensor_of(latents, shape, latent.dtype)}});
    return picture_of(output_of(outputs, "image"));
}

}  // namespace svdq
