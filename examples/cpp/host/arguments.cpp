#include "arguments.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

namespace svdq {

Argument flag(std::string const& name, bool& to, std::string const& help) {
    return {name, "", help, [&to](std::string const&) { to = true; }};
}

Argument text(std::string const& name, std::string const& value, std::optional<std::string>& to,
              std::string const& help) {
    return {name, value, help, [&to](std::string const& word) { to = word; }};
}

Argument whole(std::string const& name, std::string const& value, std::optional<int64_t>& to, int64_t low, int64_t high,
               std::string const& help) {
    return {
        name, value, help, [&to, name, low, high](std::string const& word) {
            bool const digits = !word.empty() && word.find_first_not_of("0123456789") == std::string::npos;
            int64_t const got = digits && word.size() < 20 ? std::strtoll(word.c_str(), nullptr, 10) : -1;
            if (!digits) throw UsageError(name + " " + word + ", want a number");
            if (got < low || got > high) {
                throw UsageError(name + " " + word + ", want " + std::to_string(low) + " to " + std::to_string(high));
            }
            to = got;
        }};
}

Argument number(std::string const& name, std::string const& value, std::optional<double>& to, std::string const& help) {
    return {name, value, help, [&to, name](std::string const& word) {
                char* end = nullptr;
                double const got = std::strtod(word.c_str(), &end);
                if (word.empty() || *end || !std::isfinite(got)) {
                    throw UsageError(name + " " + word + ", want a finite number");
                }
                to = got;
            }};
}

std::vector<Argument> engine_arguments(Options& options) {
    return {
        text("--plugin", "LIBRARY", options.plugin,
             "the plugin library to load (libsvdq_trt_plugin.so of an installed svdq-trt)"),
        flag("--allow-host-code", options.allow_host_code,
             "run the library that the folder brings; only for folders you trust"),
        flag("--allow-arch-mismatch", options.allow_arch_mismatch, "try a plan made for another GPU"),
        whole("--device", "N", options.device, 0, 1'000'000, "CUDA device, default 0"),
    };
}

std::string Program::usage() const {
    std::string line = "Usage: " + name;
    for (std::string const& file : files) line += " " + file;
    for (Argument const& one : arguments) line += " [" + one.name + (one.value.empty() ? "" : " " + one.value) + "]";
    return line;
}

std::string Program::help() const {
    std::string page = usage() + "\n\n" + about + "\n\n";
    for (Argument const& one : arguments) {
        std::string const left = "  " + one.name + (one.value.empty() ? "" : " " + one.value);
        page += left + std::string(left.size() < 32 ? 32 - left.size() : 1, ' ') + one.help + "\n";
    }
    return page + "\nExit codes: 0 done, 1 bad input, 2 bad arguments.\n";
}

std::vector<std::string> Program::parse(std::vector<std::string> const& words) const {
    std::vector<std::string> found;
    for (size_t i = 0; i < words.size(); ++i) {
        std::string const& word = words[i];
        if (word.compare(0, 2, "--") != 0) {
            found.push_back(word);
            continue;
        }
        auto const one =
            std::find_if(arguments.begin(), arguments.end(), [&](auto const& a) { return a.name == word; });
        if (one == arguments.end()) throw UsageError("unknown option " + word);
        if (one->value.empty()) {
            one->take("");
        } else {
            if (++i == words.size()) throw UsageError(word + " without a value");
            one->take(words[i]);
        }
    }
    if (found.size() != files.size()) {
        throw UsageError(std::to_string(found.size()) + " files, want " + std::to_string(files.size()));
    }
    return found;
}

int Program::run(int argc, char** argv, std::function<void(std::vector<std::string> const&)> const& body) const {
    std::vector<std::string> const words(argv + (argc > 0), argv + argc);
    if (std::find(words.begin(), words.end(), "--help") != words.end()) {
        std::fputs(help().c_str(), stdout);
        return 0;
    }
    try {
        body(parse(words));
    } catch (UsageError const& error) {
        std::fprintf(stderr, "%s: %s. %s\n", name.c_str(), error.what(), usage().c_str());
        return 2;
    } catch (std::exception const& error) {
        std::fprintf(stderr, "%s: %s\n", name.c_str(), error.what());
        return 1;
    }
    return 0;
}

}  // namespace svdq
