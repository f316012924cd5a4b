#include "scheduler.h"

#include <algorithm>
#include <cmath>

namespace svdq {
namespace {

constexpr int64_t kTrainTimesteps = 1000;  // diffusers' default

// Throw Error unless a value is what it says, or is left out.
void require(Json const& config, std::string const& where, char const* name, Json const& want) {
    auto const found = config.find(name);
    if (found != config.end() && !found->is_null() && *found != want) {
        throw Error(where + ": " + name, found->dump().substr(0, 80), want.dump());
    }
}

void require_one(std::string const& got, std::vector<std::string> const& known, std::string const& where) {
    if (std::find(known.begin(), known.end(), got) != known.end()) return;
    std::string want = "one of";
    for (std::string const& name : known) want += " " + name;
    throw Error(where, got.substr(0, 80), want);
}

int64_t train_timesteps(Json const& config, std::string const& where, int64_t steps) {
    int64_t const most = member_or(config, "num_train_timesteps", where, kTrainTimesteps);
    if (most < 2 || most > 1'000'000)
        throw Error(where + ": num_train_timesteps", std::to_string(most), "2 to 1000000");
    if (steps > most) throw Error("steps", std::to_string(steps), "at most " + std::to_string(most));
    return most;
}

// torch.linspace in f32: from both ends, each product and sum rounded once, as PyTorch's builds for x86 do.
std::vector<float> torch_linspace(float first, float last, int64_t count) {
    float const step = (last - first) / static_cast<float>(count - 1);
    std::vector<float> values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
        bool const front = i < count / 2;
        values[i] = front ? std::fma(step, static_cast<float>(i), first)
                          : std::fma(-step, static_cast<float>(count - i - 1), last);
    }
    return values;
}

// numpy.linspace in f64, whose last value is exact.
std::vector<double> numpy_linspace(double first, double last, int64_t count) {
    std::vector<double> values(static_cast<size_t>(count), first);
    double const step = count > 1 ? (last - first) / static_cast<double>(count - 1) : 0.0;
    for (int64_t i = 1; i < count; ++i) values[i] = static_cast<double>(i) * step + first;
    if (count > 1) values.back() = last;
    return values;
}

// Noise over signal after each of the timesteps of training.
std::vector<float> training_sigmas(Json const& config, std::string const& where, int64_t count) {
    double const start = member_or(config, "beta_start", where, 0.0001),
                 end = member_or(config, "beta_end", where, 0.02);
    auto const schedule = member_or<std::string>(config, "beta_schedule", where, "linear");
    require_one(schedule, {"linear", "scaled_linear"}, where + ": beta_schedule");
    bool const scaled = schedule == "scaled_linear";
    auto betas = torch_linspace(static_cast<float>(scaled ? std::sqrt(start) : start),
                                static_cast<float>(scaled ? std::sqrt(end) : end), count);
    std::vector<float> sigmas;
    double product = 1.0;  // as torch.cumprod accumulates
    for (float beta : betas) {
        product *= 1.0f - (scaled ? beta * beta : beta);
        auto const signal = static_cast<float>(product);
        sigmas.push_back(std::sqrt((1.0f - signal) / signal));
    }
    return sigmas;
}

std::vector<float> euler_timesteps(Json const& config, std::string const& where, std::string const& spacing,
                                   int64_t trained, int64_t steps) {
    require_one(spacing, {"linspace", "leading", "trailing"}, where + ": timestep_spacing");
    std::vector<float> found;
    if (spacing == "linspace") {
        auto const values = numpy_linspace(0.0, static_cast<double>(trained - 1), steps);
        found.assign(values.rbegin(), values.rend());
    } else if (spacing == "leading") {
        auto const offset = static_cast<float>(member_or<int64_t>(config, "steps_offset", where, 0));
        for (int64_t i = steps; i-- > 0;) found.push_back(static_cast<float>(i * (trained / steps)) + offset);
    } else {
        double const ratio = static_cast<double>(trained) / static_cast<double>(steps);
        double const count = std::ceil(static_cast<double>(trained) / ratio);  // of numpy.arange
        double const step = static_cast<double>(trained) - ratio - static_cast<double>(trained);
        for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) {
            double const value = static_cast<double>(trained) + static_cast<double>(i) * step;
            found.push_back(static_cast<float>(std::nearbyint(value)) - 1.0f);
        }
    }
    return found;
}

// numpy.interp of a table over 0, 1, ..., rounded to f32.
float interpolated(std::vector<float> const& table, double at) {
    if (at <= 0) return table.front();
    auto const below = static_cast<size_t>(at);
    if (below + 1 >= table.size()) return table.back();
    double const low = table[below], slope = table[below + 1] - low;
    return static_cast<float>(slope * (at - static_cast<double>(below)) + low);
}

}  // namespace

EulerDiscrete::EulerDiscrete(Json const& config, std::string const& where, int64_t steps)
    : prediction_(member_or<std::string>(config, "prediction_type", where, "epsilon")),
      spacing_(member_or<std::string>(config, "timestep_spacing", where, "linspace")) {
    for (char const* name : {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}) {
        require(config, where, name, false);
    }
    require(config, where, "trained_betas", nullptr);
    require(config, where, "interpolation_type", "linear");
    require(config, where, "timestep_type", "discrete");
    require(config, where, "rescale_betas_zero_snr", false);
    require_one(prediction_, {"epsilon", "v_prediction", "sample"}, where + ": prediction_type");
    auto const last = member_or<std::string>(config, "final_sigmas_type", where, "zero");
    require_one(last, {"zero", "sigma_min"}, where + ": final_sigmas_type");

    int64_t const trained = train_timesteps(config, where, steps);
    auto const sigmas = training_sigmas(config, where, trained);
    schedule_.timesteps = euler_timesteps(config, where, spacing_, trained, steps);
    for (float timestep : schedule_.timesteps) schedule_.sigmas.push_back(interpolated(sigmas, timestep));
    schedule_.sigmas.push_back(last == "zero" ? 0.0f : sigmas.front());
}

float EulerDiscrete::first_sigma() const {
    float const most = *std::max_element(schedule_.sigmas.begin(), schedule_.sigmas.end());
    return spacing_ == "leading" ? std::sqrt(most * most + 1.0f) : most;
}

float EulerDiscrete::input_factor(size_t step) const {
    float const sigma = schedule_.sigmas[step];
    return 1.0f / std::sqrt(sigma * sigma + 1.0f);
}

void EulerDiscrete::step(std::vector<float>& latents, std::vector<float> const& output, size_t step, Float type) const {
    float const sigma = schedule_.sigmas[step], change = schedule_.sigmas[step + 1] - sigma;
    float const variance = sigma * sigma + 1.0f, inverse = 1.0f / sigma, share = 1.0f / variance;
    float const velocity = -sigma / std::sqrt(variance);
    for (size_t i = 0; i < latents.size(); ++i) {
        float clean = output[i];  // prediction_type sample
        if (prediction_ == "epsilon") {
            clean = latents[i] - rounded(sigma * output[i], type);
        } else if (prediction_ == "v_prediction") {
            clean = rounded(output[i] * velocity, type) + latents[i] * share;
        }
        latents[i] = rounded(latents[i] + (latents[i] - clean) * inverse * change, type);
    }
}

FlowMatchEuler::FlowMatchEuler(Json const& config, std::string const& where, int64_t steps, int64_t image_tokens) {
    for (char const* name : {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas",
                             "stochastic_sampling", "use_flow_sigmas"}) {
        require(config, where, name, false);
    }
    require(config, where, "shift_terminal", nullptr);
    auto const type = member_or<std::string>(config, "time_shift_type", where, "exponential");
    require_one(type, {"exponential", "linear"}, where + ": time_shift_type");
    bool const dynamic = member_or(config, "use_dynamic_shifting", where, false);
    double const shift = member_or(config, "shift", where, 1.0);

    double const low = member_or(config, "base_image_seq_len", where, 256.0);
    double const high = member_or(config, "max_image_seq_len", where, 4096.0);
    double const base = member_or(config, "base_shift", where, 0.5);
    double const slope = (member_or(config, "max_shift", where, 1.15) - base) / (high - low);
    double const mu = static_cast<double>(image_tokens) * slope + (base - slope * low);
    auto const moved = static_cast<float>(type == "exponential" ? std::exp(mu) : mu);

    auto const trained = static_cast<float>(train_timesteps(config, where, steps));
    for (double value : numpy_linspace(1.0, 1.0 / static_cast<double>(steps), steps)) {
        auto const at = static_cast<float>(value);
        float const sigma = dynamic ? moved / (moved + (1.0f / at - 1.0f))
                                    : static_cast<float>(shift) * at / (1.0f + static_cast<float>(shift - 1.0) * at);
        schedule_.sigmas.push_back(sigma);
        schedule_.timesteps.push_back(sigma * trained);
    }
    schedule_.sigmas.push_back(0.0f);
}

void FlowMatchEuler::step(std::vector<float>& latents, std::vector<float> const& output, size_t step,
                          Float type) const {
    float const change = rounded(schedule_.sigmas[step + 1] - schedule_.sigmas[step], type);
    for (size_t i = 0; i < latents.size(); ++i) {
        latents[i] = rounded(latents[i] + rounded(change * output[i], type), type);
    }
}

}  // namespace svdq
