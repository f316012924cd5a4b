#include "numbers.h"

#include <cstring>
#include <map>

#include "error.h"

namespace svdq {
namespace {

template <class To, class From>
To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "not a reinterpretation");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

uint16_t bf16_bits(float value) {
    auto const bits = bits_as<uint32_t>(value);
    if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

float bf16_value(uint16_t bits) { return bits_as<float>(uint32_t{bits} << 16); }

uint16_t f16_bits(float value) {
    auto const bits = bits_as<uint32_t>(value);
    uint32_t const sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
    if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // from 65520 on: infinity
    if (magnitude < 0x38800000) {  // below 2^-14, f16 has steps of 2^-24: the FPU rounds to those of 0.5
        float const steps = bits_as<float>(magnitude) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_as<uint32_t>(steps) - bits_as<uint32_t>(0.5f)));
    }
    uint32_t const rebased = magnitude - (112u << 23);  // the exponent's bias is 15, not 127
    return static_cast<uint16_t>(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13);
}

float f16_value(uint16_t bits) {
    uint32_t const sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    if (exponent == 31) return bits_as<float>(sign | 0x7f800000 | fraction << 13);
    float const least = 0x1p-24f;
    float const size = exponent ? bits_as<float>((exponent + 112) << 23 | fraction << 13) : fraction * least;
    return sign ? -size : size;
}

template <class From, class To, class F>
std::vector<To> converted(From const* from, size_t count, F f) {
    std::vector<To> to(count);
    for (size_t i = 0; i < count; ++i) to[i] = f(from[i]);
    return to;
}

template <class T, class V>
Tensor packed(std::vector<V> const& values, std::vector<int64_t> const& shape, std::string const& dtype) {
    Tensor tensor{dtype, shape, {}};
    std::vector<T> const data(values.begin(), values.end());
    auto const* bytes = reinterpret_cast<char const*>(data.data());
    tensor.data.assign(bytes, bytes + data.size() * sizeof(T));
    return tensor;
}

template <class T>
std::vector<T> elements(Tensor const& tensor) {
    std::vector<T> found(tensor.data.size() / sizeof(T));
    std::memcpy(found.data(), tensor.data.data(), found.size() * sizeof(T));
    return found;
}

}  // namespace

std::string dtype_name(std::string const& torch_name) {
    static std::map<std::string, std::string> const kNames = {
        {"float32", "F32"}, {"float16", "F16"}, {"bfloat16", "BF16"}, {"int64", "I64"}, {"int32", "I32"}};
    auto const found = kNames.find(torch_name);
    if (found == kNames.end()) throw Error("manifest.json: dtype", torch_name, "a float or a whole number");
    return found->second;
}

Float float_of(std::string const& dtype) {
    if (dtype == "F32") return Float::kF32;
    if (dtype == "F16") return Float::kF16;
    if (dtype == "BF16") return Float::kBF16;
    throw Error("a tensor of floats", dtype, "one of F32 F16 BF16");
}

float rounded(float value, Float type) {
    switch (type) {
        case Float::kF16: return f16_value(f16_bits(value));
        case Float::kBF16: return bf16_value(bf16_bits(value));
        default: return value;
    }
}

std::vector<float> values_of(Tensor const& tensor) {
    Float const type = float_of(tensor.dtype);
    if (type == Float::kF32) return elements<float>(tensor);
    auto const bits = elements<uint16_t>(tensor);
    return converted<uint16_t, float>(bits.data(), bits.size(), type == Float::kF16 ? f16_value : bf16_value);
}

Tensor tensor_of(std::vector<float> const& values, std::vector<int64_t> const& shape, std::string const& dtype) {
    Float const type = float_of(dtype);
    if (type == Float::kF32) return packed<float>(values, shape, dtype);
    auto const bits =
        converted<float, uint16_t>(values.data(), values.size(), type == Float::kF16 ? f16_bits : bf16_bits);
    return packed<uint16_t>(bits, shape, dtype);
}

Tensor whole_tensor_of(std::vector<int64_t> const& values, std::vector<int64_t> const& shape,
                       std::string const& dtype) {
    if (dtype == "I64") return packed<int64_t>(values, shape, dtype);
    if (dtype == "I32") return packed<int32_t>(values, shape, dtype);
    throw Error("a tensor of whole numbers", dtype, "one of I64 I32");
}

}  // namespace svdq
