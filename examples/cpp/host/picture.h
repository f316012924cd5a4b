// Pixels, and their file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "numbers.h"

namespace svdq {

struct Picture {
    int64_t height, width;
    std::vector<uint8_t> rgb;  // [height, width, 3]
};

// A decoder's output [1, 3, H, W], from -1 to 1, in 8 bits, as diffusers' VaeImageProcessor makes it. Throws Error.
Picture picture_of(Tensor const& image);
// As PNG. Throws Error.
void write_png(std::string const& path, Picture const& picture);

}  // namespace svdq
