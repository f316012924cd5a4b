// A program's command line.
#pragma once

#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "runner.h"

namespace svdq {

// Bad arguments; exit code 2.
class UsageError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

struct Argument {
    std::string name;   // "--device"
    std::string value;  // what --help calls its value; empty where it has none
    std::string help;
    std::function<void(std::string const&)> take;  // throws UsageError
};

// What makes an argument of a variable.
Argument flag(std::string const& name, bool& to, std::string const& help);
Argument text(std::string const& name, std::string const& value, std::optional<std::string>& to,
              std::string const& help);
Argument whole(std::string const& name, std::string const& value, std::optional<int64_t>& to, int64_t low, int64_t high,
               std::string const& help);
Argument number(std::string const& name, std::string const& value, std::optional<double>& to, std::string const& help);
// Those of Options, which all programs have.
std::vector<Argument> engine_arguments(Options& options);

struct Program {
    std::string name;
    std::vector<std::string> files;  // positional, by what --help calls them
    std::string about;               // for --help
    std::vector<Argument> arguments;

    // Parses the words, runs `body` with the files, and returns the exit code as svdq-trt's: 0 done, 1 bad input, 2 bad
    // arguments.
    int run(int argc, char** argv, std::function<void(std::vector<std::string> const&)> const& body) const;

private:
    std::vector<std::string> parse(std::vector<std::string> const& words) const;
    std::string usage() const;
    std::string help() const;
};

}  // namespace svdq
