// The one exception of these programs: "where: got, want. Fix." as in svdq_trt/base/errors.py.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

namespace svdq {

class Error : public std::runtime_error {
public:
    Error(std::string const& where, std::string const& got, std::string const& want, std::string const& fix = "")
        : std::runtime_error(line(where + ": " + got + ", want " + want + "." + (fix.empty() ? "" : " " + fix))) {}

private:
    // One line, whatever is in the names of strangers' files.
    static std::string line(std::string text) {
        auto const control = [](unsigned char c) { return c < 32 || c == 127; };
        std::replace_if(text.begin(), text.end(), control, '?');
        return text;
    }
};

}  // namespace svdq
