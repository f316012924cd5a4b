// Parts of examples/cpp by themselves, for tests in Python:
//
//   driver digest FILE SHA256 | json FILE | copy FROM.safetensors TO.safetensors | check FOLDER IN.safetensors
//   driver tokens FOLDER COMPONENT LENGTH         ids of the texts of a JSON list on stdin
//   driver euler CONFIG STEPS IN OUT              a scheduler's values, and its steps on the tensors of a file
//   driver flow CONFIG STEPS TOKENS IN OUT
//   driver convert IN OUT                         float32 values in 16 bit, there and back
//   driver train TEXT PREFIX SIZE                 a SentencePiece model with T5's settings
//   driver picture FOLDER_OF_EXCHANGE WORDS...    text_to_image; engines are run by who started the driver: a line
//                                                 "run ENGINE" asks for it, a line on stdin says that it is done;
//                                                 they open once all are being opened, but one ENGINE with a file
//                                                 refused-ENGINE, which holds after how many milliseconds it is refused
#include <sentencepiece_trainer.h>

#include <condition_variable>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <iostream>
#include <iterator>
#include <mutex>
#include <thread>

#include "host/files.h"
#include "host/scheduler.h"
#include "host/text_to_image.h"
#include "host/tokenizer.h"

namespace {

using Words = std::vector<std::string>;

int digest(Words const& words) { return svdq::check_digest(words.at(0), words.at(1)), 0; }

int json(Words const& words) { return svdq::read_object(words.at(0), "a JSON file"), 0; }

int copy(Words const& words) { return svdq::write_safetensors(words.at(1), svdq::read_safetensors(words.at(0))), 0; }

int check(Words const& words) {
    return svdq::check_inputs(svdq::read_manifest(words.at(0)).inputs, svdq::read_safetensors(words.at(1))), 0;
}

int tokens(Words const& words) {
    svdq::PipelineFolder const folder(words.at(0));
    auto const tokenizer = svdq::read_tokenizer(folder, words.at(1));
    std::string const given{std::istreambuf_iterator<char>(std::cin), {}};
    svdq::Json found = svdq::Json::array();
    for (svdq::Json const& text : svdq::Json::parse(given)) {
        auto const encoded = tokenizer->encode(text.get<std::string>(), std::stoul(words.at(2)));
        found.push_back({encoded.ids, encoded.needed});
    }
    std::cout << found << std::endl;
    return 0;
}

svdq::Tensor numbers(std::vector<float> const& values) {
    return svdq::tensor_of(values, {static_cast<int64_t>(values.size())}, "F32");
}

// The latents after every step, of which each has the same output of the model.
template <class Scheduler>
svdq::Tensors steps(Scheduler const& scheduler, std::string const& path) {
    svdq::Tensors const given = svdq::read_safetensors(path);
    svdq::Tensor const& start = given.at("latents");
    auto latents = svdq::values_of(start);
    auto const output = svdq::values_of(given.at("output"));
    svdq::Tensors found{{"timesteps", numbers(scheduler.schedule().timesteps)},
                        {"sigmas", numbers(scheduler.schedule().sigmas)}};
    for (size_t i = 0; i < scheduler.schedule().timesteps.size(); ++i) {
        scheduler.step(latents, output, i, svdq::float_of(start.dtype));
        found["latents" + std::to_string(i)] = svdq::tensor_of(latents, start.shape, start.dtype);
    }
    return found;
}

int euler(Words const& words) {
    svdq::EulerDiscrete const scheduler(svdq::read_object(words.at(0), "a config"), words[0], std::stol(words.at(1)));
    svdq::Tensors found = steps(scheduler, words.at(2));
    std::vector<float> factors;
    for (size_t i = 0; i < scheduler.schedule().timesteps.size(); ++i) factors.push_back(scheduler.input_factor(i));
    found["factors"] = numbers(factors), found["first"] = numbers({scheduler.first_sigma()});
    svdq::write_safetensors(words.at(3), found);
    return 0;
}

int flow(Words const& words) {
    svdq::FlowMatchEuler const scheduler(svdq::read_object(words.at(0), "a config"), words[0], std::stol(words.at(1)),
                                         std::stol(words.at(2)));
    svdq::write_safetensors(words.at(4), steps(scheduler, words.at(3)));
    return 0;
}

int convert(Words const& words) {
    svdq::Tensor const given = svdq::read_safetensors(words.at(0)).at("values");
    svdq::Tensors found;
    for (char const* dtype : {"F16", "BF16"}) {
        found[dtype] = svdq::tensor_of(svdq::values_of(given), given.shape, dtype);
        found[std::string(dtype) + " back"] = svdq::tensor_of(svdq::values_of(found[dtype]), given.shape, "F32");
    }
    svdq::write_safetensors(words.at(1), found);
    return 0;
}

int train(Words const& words) {
    auto const status = sentencepiece::SentencePieceTrainer::Train(
        "--input=" + words.at(0) + " --model_prefix=" + words.at(1) + " --vocab_size=" + words.at(2) +
        " --pad_id=0 --eos_id=1 --unk_id=2 --bos_id=-1 --minloglevel=2");
    return status.ok() ? 0 : (std::cerr << status.ToString() << std::endl, 1);
}

class Asked final : public svdq::Runner {
public:
    Asked(std::string engine, std::string exchange) : engine_(std::move(engine)), exchange_(std::move(exchange)) {}

    svdq::Tensors run(svdq::Tensors const& inputs) override {
        svdq::write_safetensors(exchange_ + "/in.safetensors", inputs);
        std::cout << "run " << engine_ << std::endl;
        std::string line;
        std::getline(std::cin, line);
        return svdq::read_safetensors(exchange_ + "/out.safetensors");
    }

private:
    std::string engine_, exchange_;
};

// Opens engines, of which a pipeline has four.
class Door {
public:
    explicit Door(std::string exchange) : exchange_(std::move(exchange)) {}

    std::unique_ptr<svdq::Runner> open(std::string const& folder) {
        wait_for_all();
        std::filesystem::path const name = std::filesystem::path(folder).filename();
        std::string const refused = exchange_ + "/refused-" + name.string();
        if (!std::filesystem::exists(exchange_)) throw svdq::Error(exchange_, "missing", "a folder");
        if (std::filesystem::exists(refused)) {
            std::this_thread::sleep_for(std::chrono::milliseconds(std::stol(svdq::read_file(refused, "a number"))));
            throw svdq::Error(folder, "refused", "another");
        }
        return std::make_unique<Asked>(folder, exchange_);
    }

private:
    void wait_for_all() {
        std::unique_lock lock(mutex_);
        ++waiting_;
        changed_.notify_all();
        bool const all = changed_.wait_for(lock, std::chrono::seconds(60), [&] { return waiting_ == 4; });
        if (!all) throw svdq::Error("driver", std::to_string(waiting_) + " engines are being opened", "4");
    }

    std::string exchange_;
    std::mutex mutex_;
    std::condition_variable changed_;
    int waiting_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
    Words const words(argv + 1, argv + argc);
    if (words.at(0) == "picture") {
        Door door(words.at(1));
        return svdq::text_to_image(argc - 2, argv + 2,
                                   [&](std::string const& folder, svdq::Options const&) { return door.open(folder); });
    }
    std::map<std::string, std::function<int(Words const&)>> const modes = {
        {"digest", digest}, {"json", json}, {"copy", copy},   {"check", check},    {"tokens", tokens},
        {"euler", euler},   {"flow", flow}, {"train", train}, {"convert", convert}};
    try {
        return modes.at(words[0])({words.begin() + 1, words.end()});
    } catch (std::exception const& error) {
        std::cerr << error.what() << std::endl;
        return 1;
    }
}
