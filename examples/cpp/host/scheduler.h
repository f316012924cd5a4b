// The schedulers of diffusers that the pipelines here are published with: the same values bit for bit, rounded to 16 bit
// where diffusers' tensors on a GPU are. There PyTorch divides by a number by multiplying with its inverse, and rounds a
// factor to the tensor's type if it is in GPU memory itself: flow matching's sigmas are, the others are not.
// A config value that would change results and is not handled is refused.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "numbers.h"

namespace svdq {

// Each step's timestep, and the noise levels between which it goes: one more.
struct Schedule {
    std::vector<float> timesteps, sigmas;
};

// EulerDiscreteScheduler.
class EulerDiscrete {
public:
    // Throws Error. `where` is the config's path.
    EulerDiscrete(Json const& config, std::string const& where, int64_t steps);

    Schedule const& schedule() const { return schedule_; }
    // By what noise of deviation 1 is multiplied to start from (init_noise_sigma).
    float first_sigma() const;
    // By what latents are multiplied for the model at a step (scale_model_input).
    float input_factor(size_t step) const;
    // The latents after a step, from the model's output; both are of `type`.
    void step(std::vector<float>& latents, std::vector<float> const& output, size_t step, Float type) const;

private:
    Schedule schedule_;
    std::string prediction_, spacing_;
};

// FlowMatchEulerDiscreteScheduler, with the sigmas that FluxPipeline gives it.
class FlowMatchEuler {
public:
    // `image_tokens`: of the picture, on which a dynamic shift depends. Throws Error.
    FlowMatchEuler(Json const& config, std::string const& where, int64_t steps, int64_t image_tokens);

    Schedule const& schedule() const { return schedule_; }
    void step(std::vector<float>& latents, std::vector<float> const& output, size_t step, Float type) const;

private:
    Schedule schedule_;
};

}  // namespace svdq
