// Named tensors in a .safetensors file: 8 bytes of header size, a JSON header, the tensors' bytes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace svdq {

struct Tensor {
    std::string dtype;  // safetensors' name: F16, BF16, F32, I32, I64, I8, U8, BOOL
    std::vector<int64_t> shape;
    std::vector<char> data;  // row-major
};

using Tensors = std::map<std::string, Tensor>;

// "[1, 4, 64, 64]", for messages.
std::string text_of(std::vector<int64_t> const& shape);
// Bytes of one element. Throws Error for an unknown name.
size_t element_size(std::string const& dtype);
// Number of elements. Throws Error for negative sizes and for more than fit in memory.
size_t element_count(std::vector<int64_t> const& shape);

// Throw Error: not readable or writable, or not a .safetensors file.
Tensors read_safetensors(std::string const& path);
void write_safetensors(std::string const& path, Tensors const& tensors);

}  // namespace svdq
