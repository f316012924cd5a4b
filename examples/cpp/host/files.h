// Files whole, and their digests.
#pragma once

#include <cstdint>
#include <string>

namespace svdq {

// All bytes. Throws Error, which calls the file `want`: "an engine manifest".
std::string read_file(std::string const& path, std::string const& want);

// Writes all bytes; the file appears under its name when it is complete. Throws Error.
void write_file(std::string const& path, std::string const& bytes);

// Throws Error unless the file is there with that size and SHA-256, 64 hex digits; the size is compared first.
void check_file(std::string const& path, int64_t bytes, std::string const& sha256, std::string const& fix = "");
// The same without a size.
void check_digest(std::string const& path, std::string const& sha256, std::string const& fix = "");

}  // namespace svdq
