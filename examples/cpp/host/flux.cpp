// FluxPipeline.
#include <cmath>

#include "numbers.h"
#include "pipeline.h"
#include "scheduler.h"

namespace svdq {
namespace {

constexpr int64_t kSteps = 28;  // this and the next are diffusers' defaults
constexpr double kGuidance = 3.5;
constexpr int64_t kPatch = 2;  // latents of a token's side

Classes const kClasses = {
    {"text_encoder", {"CLIPTextModel"}},
    {"text_encoder_2", {"T5EncoderModel"}},
    {"tokenizer", {"CLIPTokenizer", "CLIPTokenizerFast"}},
    {"tokenizer_2", {"T5Tokenizer", "T5TokenizerFast"}},
    {"vae", {"AutoencoderKL"}},
    {"scheduler", {"FlowMatchEulerDiscreteScheduler"}},
};

// Latents [C, H, W] of tokens [H/2 * W/2, C * 4], each a patch of 2 x 2.
std::vector<float> unpacked(std::vector<float> const& tokens, LatentSize const& size) {
    std::vector<float> found(tokens.size());
    size_t from = 0;
    for (int64_t row = 0; row < size.height; row += kPatch) {
        for (int64_t column = 0; column < size.width; column += kPatch) {
            for (int64_t channel = 0; channel < size.channels; ++channel) {
                for (int64_t i = 0; i < kPatch * kPatch; ++i, ++from) {
                    int64_t const y = row + i / kPatch, x = column + i % kPatch;
                    found[static_cast<size_t>((channel * size.height + y) * size.width + x)] = tokens[from];
                }
            }
        }
    }
    return found;
}

// Image, row and column of every token [N, 3].
std::vector<float> image_ids(LatentSize const& size) {
    std::vector<float> ids;
    for (int64_t row = 0; row < size.height / kPatch; ++row) {
        for (int64_t column = 0; column < size.width / kPatch; ++column) {
            ids.insert(ids.end(), {0.0f, static_cast<float>(row), static_cast<float>(column)});
        }
    }
    return ids;
}

class Flux {
public:
    // Checks everything that can be without an engine.
    Flux(PipelineFolder const& folder, Request const& request)
        : parts_(folder, "transformer", kClasses,
                 {"hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids",
                  "guidance"}),
          size_(latent_size(parts_, request, tuned(), kPatch)),
          guidance_(static_cast<float>(request.guidance.value_or(kGuidance))),
          type_(float_of(hidden().dtype)),
          scheduler_(parts_.scheduler(), parts_.scheduler_path(), request.steps.value_or(kSteps), shape()[1]),
          shift_(static_cast<float>(member_as<double>(parts_.vae(), "shift_factor", "vae/config.json"))),
          clip_(parts_.tokens("tokenizer", "text_encoder", request.prompt)),
          t5_(parts_.tokens("tokenizer_2", "text_encoder_2", request.prompt)) {
        if (request.negative) {
            throw Error("negative", "given to a FluxPipeline", "no negative prompt: it has no effect");
        }
        check_text("prompt", {clip_, t5_});
        check_shape(hidden(), shape());
        check_decoder(parts_, size_);
        latents_ = noise_of(request, shape(), type_);
    }

    Generated run(OpenEngine const& open, Options const& options) {
        parts_.open(open, options);
        Tensors inputs = conditions();
        for (size_t i = 0; i < scheduler_.schedule().timesteps.size(); ++i) {
            scheduler_.step(latents_, velocity(inputs, i), i, type_);
        }
        Generated found{tensor_of(latents_, shape(), hidden().dtype), {}};
        auto latents = unpacked(latents_, size_);
        float const scaling = parts_.scaling_factor();
        transform(latents, type_, [&](float value) { return value * (1.0f / scaling); });
        transform(latents, type_, [&](float value) { return value + shift_; });
        found.picture = decode(parts_, latents, size_);
        return found;
    }

private:
    Input const& hidden() const { return parts_.input("transformer", "hidden_states"); }
    // The denoiser's profile has the number of tokens alone. A side that its build was told gives the other; those of
    // its models are equal.
    Sides tuned() const {
        if (hidden().best.size() != 3) throw Error("transformer", "hidden_states of other sizes", "[batch, tokens, C]");
        int64_t const scale = parts_.latent_scale(), latents = hidden().best[1] * kPatch * kPatch;
        if (auto const height = parts_.tuned_pixels("height")) return {*height / scale, latents * scale / *height};
        if (auto const width = parts_.tuned_pixels("width")) return {latents * scale / *width, *width / scale};
        auto const side = static_cast<int64_t>(std::sqrt(latents));
        return {side, side};
    }
    // Of latents as tokens.
    std::vector<int64_t> shape() const {
        return {1, size_.height * size_.width / kPatch / kPatch, size_.channels * kPatch * kPatch};
    }

    std::vector<float> encode(std::string const& component, Encoded const& text, char const* output) const {
        Tensors inputs{{"input_ids", ids_tensor(text.ids, parts_.input(component, "input_ids"))}};
        if (parts_.has_input(component, "attention_mask")) {  // ones: the pipeline gives none
            std::vector<int64_t> const ones(text.ids.size(), 1);
            inputs["attention_mask"] = ids_tensor(ones, parts_.input(component, "attention_mask"));
        }
        return values_of(output_of(parts_.run(component, inputs), output));
    }

    // What stays the same at every step.
    Tensors conditions() const {
        Tensors found;
        auto const add = [&](char const* name, std::vector<float> values, std::vector<int64_t> const& shape) {
            parts_.add_input(found, "transformer", name, std::move(values), shape, type_);
        };
        auto const tokens = static_cast<int64_t>(t5_.ids.size());
        add("pooled_projections", encode("text_encoder", clip_, "pooler_output"), {1});
        add("encoder_hidden_states", encode("text_encoder_2", t5_, "last_hidden_state"), {1, tokens});
        add("txt_ids", std::vector<float>(3 * t5_.ids.size()), {tokens});
        add("img_ids", image_ids(size_), {shape()[1]});
        if (parts_.has_input("transformer", "guidance")) {  // which the pipeline does not round
            found["guidance"] = tensor_of({guidance_}, {1}, parts_.input("transformer", "guidance").dtype);
        }
        return found;
    }

    // The model's output at a step; `inputs` are the conditions, beside which it writes its own.
    std::vector<float> velocity(Tensors& inputs, size_t step) const {
        float const time = rounded(rounded(scheduler_.schedule().timesteps[step], type_) * (1.0f / 1000.0f), type_);
        inputs["hidden_states"] = tensor_of(latents_, shape(), hidden().dtype);
        inputs["timestep"] = tensor_of({time}, {1}, parts_.input("transformer", "timestep").dtype);
        auto output = values_of(output_of(parts_.run("transformer", inputs), "out_hidden_states"));
        round_all(output, type_);
        return output;
    }

    Parts parts_;
    LatentSize size_;
    float guidance_;
    Float type_;  // of latents and text
    FlowMatchEuler scheduler_;
    float shift_;  // of the autoencoder
    Encoded clip_, t5_;
    std::vector<float> latents_;  // as tokens
};

}  // namespace

Generated flux(PipelineFolder const& folder, OpenEngine const& open, Options const& options, Request const& request) {
    return Flux(folder, request).run(open, options);
}

}  // namespace svdq
