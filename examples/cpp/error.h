// The one exception of this program: "where: got, want." as in svdq_trt/base/errors.py.
#pragma once

#include <stdexcept>
#include <string>

namespace svdq {

class Error : public std::runtime_error {
public:
    Error(std::string const& where, std::string const& got, std::string const& want)
        : std::runtime_error(where + ": " + got + ", want " + want + ".") {}
};

}  // namespace svdq
