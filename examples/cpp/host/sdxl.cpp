// StableDiffusionXLPipeline.
#include <algorithm>
#include <array>

#include "numbers.h"
#include "pipeline.h"
#include "scheduler.h"

namespace svdq {
namespace {

constexpr int64_t kSteps = 50;  // this and the next two are diffusers' defaults
constexpr double kGuidance = 5.0;
constexpr bool kZerosForNoNegative = true;

Classes const kClasses = {
    {"text_encoder", {"CLIPTextModel"}},
    {"text_encoder_2", {"CLIPTextModelWithProjection"}},
    {"tokenizer", {"CLIPTokenizer", "CLIPTokenizerFast"}},
    {"tokenizer_2", {"CLIPTokenizer", "CLIPTokenizerFast"}},
    {"vae", {"AutoencoderKL"}},
    {"scheduler", {"EulerDiscreteScheduler"}},
};

// Texts behind each other: the states of both encoders side by side [B, T, C], and the second's pooled text [B, P].
struct Texts {
    std::vector<float> states, pooled;

    void append(Texts const& other) {
        states.insert(states.end(), other.states.begin(), other.states.end());
        pooled.insert(pooled.end(), other.pooled.begin(), other.pooled.end());
    }
};

// The states before the last layer [T, C], of [layers + 1, 1, T, C].
std::vector<float> last_but_one(Tensors const& outputs) {
    Tensor const& states = output_of(outputs, "hidden_states");
    if (states.shape.size() != 4 || states.shape[0] < 2) {
        throw Error("text encoder", "hidden states of other sizes", "[layers, 1, tokens, channels]");
    }
    auto const values = values_of(states);
    auto const layer = static_cast<std::ptrdiff_t>(values.size()) / states.shape[0];
    return {values.end() - 2 * layer, values.end() - layer};
}

// [T, C1 + C2] of [T, C1] and [T, C2].
std::vector<float> side_by_side(std::vector<float> const& first, std::vector<float> const& second, size_t tokens) {
    std::vector<float> found;
    auto const left = first.size() / tokens, right = second.size() / tokens;
    for (size_t token = 0; token < tokens; ++token) {
        found.insert(found.end(), &first[token * left], &first[token * left] + left);
        found.insert(found.end(), &second[token * right], &second[token * right] + right);
    }
    return found;
}

// uncond + guidance * (cond - uncond), of an output of both; as it is without guidance.
std::vector<float> guided(std::vector<float> const& output, size_t count, float guidance, Float type) {
    if (output.size() == count) return output;
    std::vector<float> found(count);
    for (size_t i = 0; i < count; ++i) {
        float const difference = rounded(output[count + i] - output[i], type);
        found[i] = rounded(output[i] + rounded(guidance * difference, type), type);
    }
    return found;
}

class StableDiffusionXl {
public:
    // Checks everything that can be without an engine.
    StableDiffusionXl(PipelineFolder const& folder, Request const& request)
        : parts_(folder, "unet", kClasses, {"sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids"}),
          size_(latent_size(parts_, request, tuned(), 1)),
          guidance_(request.guidance.value_or(kGuidance)),
          rows_(guidance_ > 1 ? 2 : 1),
          type_(float_of(sample().dtype)),
          scheduler_(parts_.scheduler(), parts_.scheduler_path(), request.steps.value_or(kSteps)),
          prompt_(tokenize("prompt", request.prompt)),
          negative_(tokenize("negative", request.negative.value_or(""))) {
        check_shape(sample(), shape(rows_));
        check_decoder(parts_, size_);
        Json const vae = parts_.vae();
        auto const has = [&](char const* name) { return vae.contains(name) && !vae[name].is_null(); };
        if (has("latents_mean") && has("latents_std")) {
            throw Error("vae/config.json", "latents_mean and latents_std", "a scaling_factor alone");
        }
        zeros_ = !request.negative &&
                 member_or(folder.index(), "force_zeros_for_empty_prompt", "model_index.json", kZerosForNoNegative);
        latents_ = noise_of(request, shape(1), type_);
    }

    Generated run(OpenEngine const& open, Options const& options) {
        parts_.open(open, options);
        Tensors inputs = conditions();
        transform(latents_, type_, [&](float value) { return value * scheduler_.first_sigma(); });
        for (size_t i = 0; i < scheduler_.schedule().timesteps.size(); ++i) {
            scheduler_.step(latents_, predicted_noise(inputs, i), i, type_);
        }
        Generated found{tensor_of(latents_, shape(1), sample().dtype), {}};
        float const scaling = parts_.scaling_factor();
        transform(latents_, type_, [&](float value) { return value * (1.0f / scaling); });
        found.picture = decode(parts_, latents_, size_);
        return found;
    }

private:
    using Ids = std::array<Encoded, 2>;  // of both tokenizers

    Input const& sample() const { return parts_.input("unet", "sample"); }
    Sides tuned() const {
        if (sample().best.size() != 4) throw Error("unet", "a sample of other sizes", "[batch, channels, H, W]");
        return {sample().best[2], sample().best[3]};
    }
    std::vector<int64_t> shape(int64_t rows) const { return {rows, size_.channels, size_.height, size_.width}; }

    Ids tokenize(char const* name, std::string const& text) const {
        Ids found = {parts_.tokens("tokenizer", "text_encoder", text),
                     parts_.tokens("tokenizer_2", "text_encoder_2", text)};
        check_text(name, {found[0], found[1]});
        if (found[0].ids.size() != found[1].ids.size()) throw Error("text encoders", "two lengths of text", "one");
        return found;
    }

    Texts encode(Ids const& ids) const {
        auto const run = [&](std::string const& component, Encoded const& one) {
            return parts_.run(component, {{"input_ids", ids_tensor(one.ids, parts_.input(component, "input_ids"))}});
        };
        Tensors const outputs = run("text_encoder_2", ids[1]);
        auto const first = last_but_one(run("text_encoder", ids[0])), second = last_but_one(outputs);
        Texts text{side_by_side(first, second, ids[0].ids.size()), values_of(output_of(outputs, "text_embeds"))};
        round_all(text.states, type_);
        round_all(text.pooled, type_);
        return text;
    }

    // What stays the same at every step: texts, without guidance the prompt alone, and the picture's sizes [B, 6].
    Tensors conditions() const {
        Texts const prompt = encode(prompt_);
        Texts texts;
        if (rows_ == 2 && !zeros_) texts = encode(negative_);
        if (rows_ == 2 && zeros_) {
            texts = {std::vector<float>(prompt.states.size()), std::vector<float>(prompt.pooled.size())};
        }
        texts.append(prompt);
        auto const height = static_cast<float>(size_.height * size_.scale);
        auto const width = static_cast<float>(size_.width * size_.scale);
        std::vector<float> ids;
        for (int64_t row = 0; row < rows_; ++row) ids.insert(ids.end(), {height, width, 0, 0, height, width});
        Tensors found;
        auto const tokens = static_cast<int64_t>(prompt_[0].ids.size());
        parts_.add_input(found, "unet", "encoder_hidden_states", texts.states, {rows_, tokens}, type_);
        parts_.add_input(found, "unet", "text_embeds", texts.pooled, {rows_}, type_);
        parts_.add_input(found, "unet", "time_ids", ids, {rows_}, type_);
        return found;
    }

    // The model's output at a step, guided; `inputs` are the conditions, beside which it writes its own.
    std::vector<float> predicted_noise(Tensors& inputs, size_t step) const {
        auto scaled = latents_;
        transform(scaled, type_, [&](float value) { return value * scheduler_.input_factor(step); });
        scaled.resize(scaled.size() * static_cast<size_t>(rows_));
        if (rows_ == 2) std::copy_n(scaled.data(), latents_.size(), scaled.data() + latents_.size());
        inputs["sample"] = tensor_of(scaled, shape(rows_), sample().dtype);
        std::vector<float> const times(static_cast<size_t>(rows_), scheduler_.schedule().timesteps[step]);
        inputs["timestep"] = tensor_of(times, {rows_}, parts_.input("unet", "timestep").dtype);
        auto output = values_of(output_of(parts_.run("unet", inputs), "out_sample"));
        round_all(output, type_);
        return guided(output, latents_.size(), static_cast<float>(guidance_), type_);
    }

    Parts parts_;
    LatentSize size_;
    double guidance_;
    int64_t rows_;  // of a batch: two with guidance
    Float type_;    // of latents and text
    EulerDiscrete scheduler_;
    Ids prompt_, negative_;
    bool zeros_ = false;  // stand for the text of a negative prompt that is not given
    std::vector<float> latents_;
};

}  // namespace

Generated stable_diffusion_xl(PipelineFolder const& folder, OpenEngine const& open, Options const& options,
                              Request const& request) {
    return StableDiffusionXl(folder, request).run(open, options);
}

}  // namespace svdq
