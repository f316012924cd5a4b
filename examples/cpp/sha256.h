// SHA-256 (FIPS 180-4) of a file.
#pragma once

#include <string>

namespace svdq {

// 64 hex digits. Throws Error when the file cannot be read.
std::string sha256_of_file(std::string const& path);

}  // namespace svdq
