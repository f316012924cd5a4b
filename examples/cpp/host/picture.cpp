#include "picture.h"

#include <png.h>

#include <algorithm>
#include <cmath>

#include "error.h"
#include "files.h"

namespace svdq {

Picture picture_of(Tensor const& image) {
    if (image.shape.size() != 4 || image.shape[0] != 1 || image.shape[1] != 3) {
        throw Error("vae_decoder", "an output that is no picture", "[1, 3, height, width]");
    }
    auto values = values_of(image);
    Float const type = float_of(image.dtype);
    transform(values, type, [](float value) { return value * 0.5f; });
    transform(values, type, [](float value) { return value + 0.5f; });
    auto const pixels = static_cast<size_t>(image.shape[2] * image.shape[3]);
    Picture picture{image.shape[2], image.shape[3], std::vector<uint8_t>(3 * pixels)};
    for (size_t i = 0; i < values.size(); ++i) {
        float const value = values[i] > 0 ? std::min(values[i], 1.0f) : 0.0f;  // also of NaN
        picture.rgb[i % pixels * 3 + i / pixels] = static_cast<uint8_t>(std::nearbyint(value * 255.0f));
    }
    return picture;
}

void write_png(std::string const& path, Picture const& picture) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.width = static_cast<png_uint_32>(picture.width), image.height = static_cast<png_uint_32>(picture.height);
    image.format = PNG_FORMAT_RGB;
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
    std::string bytes(size, '\0');
    if (!png_image_write_to_memory(&image, bytes.data(), &size, 0, picture.rgb.data(), 0, nullptr)) {
        throw Error(path, image.message, "a PNG");
    }
    bytes.resize(size);
    write_file(path, bytes);
}

}  // namespace svdq
