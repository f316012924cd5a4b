// What the pipelines have in common: a request, the opened parts of a folder, and a picture's way in and out of latents.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "picture.h"
#include "pipeline_folder.h"
#include "runner.h"
#include "tokenizer.h"

namespace svdq {

// What is asked for; nothing is the pipeline's own default, of sizes what the engines are tuned for.
struct Request {
    std::string prompt;
    std::optional<std::string> negative, noise;  // noise: a file, whose tensor is called latents
    std::optional<int64_t> steps, seed, width, height;
    std::optional<double> guidance;
};

struct Generated {
    Tensor latents;  // as diffusers returns them for output_type "latent"
    Picture picture;
};

// The class of each component that a pipeline is run with.
using Classes = std::map<std::string, std::set<std::string>>;

class Parts {
public:
    // Throws Error unless the folder has exactly these components, of these classes, and the denoiser these inputs.
    Parts(PipelineFolder const& folder, std::string const& denoiser, Classes const& classes,
          std::set<std::string> const& inputs);

    // Opens every engine that a picture from text needs, side by side, and says on stderr how long it took. Throws the
    // first Error by the order of the parts, once all are done.
    void open(OpenEngine const& open, Options const& options);
    // Throws Error.
    Tensors run(std::string const& component, Tensors const& inputs) const;

    PipelineFolder const& folder() const { return folder_; }
    bool has_input(std::string const& component, std::string const& name) const;
    Input const& input(std::string const& component, std::string const& name) const;
    // The config of the scheduler, and where it is.
    Json scheduler() const { return folder_.object(kScheduler); }
    std::string scheduler_path() const { return folder_.file(kScheduler); }
    Json vae() const { return folder_.object("vae/config.json"); }
    float scaling_factor() const;
    int64_t latent_scale() const;  // pixels of a picture's side to one of the latents'. Throws Error.

    // Pixels of a side ("height") that the denoiser's build was told to tune for; none: its model's own. Throws Error.
    std::optional<int64_t> tuned_pixels(std::string const& side) const;

    // Adds values [shape..., C], rounded to a type, as an input of a component. Throws Error: out of its range.
    void add_input(Tensors& inputs, std::string const& component, std::string const& name, std::vector<float> values,
                   std::vector<int64_t> shape, Float type) const;

    // Token ids of a text by a tokenizer, of the length that its encoder takes, for an encoder's run.
    Encoded tokens(std::string const& tokenizer, std::string const& encoder, std::string const& text) const;

private:
    static constexpr char const* kScheduler = "scheduler/scheduler_config.json";

    PipelineFolder const& folder_;
    std::string denoiser_;
    std::map<std::string, std::unique_ptr<Runner>> runners_;
    std::map<std::string, std::unique_ptr<Tokenizer>> tokenizers_;
};

// An output of a run. Throws Error: none of that name.
Tensor const& output_of(Tensors const& outputs, std::string const& name);
// Throws Error for a text of which all of the encoders would drop the end.
void check_text(char const* name, std::vector<Encoded> const& encoded);
// Token ids as a tensor [1, T] of an input's dtype.
Tensor ids_tensor(std::vector<int64_t> const& ids, Input const& input);

// Sides in latents.
struct Sides {
    int64_t height, width;
};
// Size of latents, and pixels of a picture's side to one of theirs.
struct LatentSize {
    int64_t channels, height, width, scale;
};
// Of the picture that is asked for, by default `tuned`. Throws Error unless pixels are multiples of `unit` latents.
LatentSize latent_size(Parts const& parts, Request const& request, Sides const& tuned, int64_t unit);
// Throws Error unless the decoder takes that size in one run.
void check_decoder(Parts const& parts, LatentSize const& size);

// Noise of that shape, of a file or from the seed, rounded to a type. Throws Error: the file's has another shape.
std::vector<float> noise_of(Request const& request, std::vector<int64_t> const& shape, Float type);

// Decodes latents [1, C, H, W], which are scaled already. Throws Error.
Picture decode(Parts const& parts, std::vector<float> const& latents, LatentSize const& size);

// The pipelines of diffusers, by its class names. Throw Error.
Generated stable_diffusion_xl(PipelineFolder const& folder, OpenEngine const& open, Options const& options,
                              Request const& request);
Generated flux(PipelineFolder const& folder, OpenEngine const& open, Options const& options, Request const& request);

}  // namespace svdq
