// 16-bit floats: the one place that converts. Values are computed in float and rounded to a type where PyTorch would.
#pragma once

#include <string>
#include <vector>

#include "safetensors.h"

namespace svdq {

enum class Float { kF32, kF16, kBF16 };

// Safetensors' name of a manifest's: F16 of float16. Throws Error for one that no engine here has.
std::string dtype_name(std::string const& torch_name);
// The type of that name, F32, F16 or BF16. Throws Error.
Float float_of(std::string const& dtype);

// The nearest value of the type, ties to even.
float rounded(float value, Float type);
// f(each value), rounded to the type.
template <class F>
void transform(std::vector<float>& values, Float type, F f) {
    for (float& value : values) value = rounded(f(value), type);
}

// Each value, rounded to the type.
inline void round_all(std::vector<float>& values, Float type) {
    transform(values, type, [](float value) { return value; });
}

// A float tensor's values, and a tensor of values, rounded where the dtype is shorter. Throw Error: not a float's dtype.
std::vector<float> values_of(Tensor const& tensor);
Tensor tensor_of(std::vector<float> const& values, std::vector<int64_t> const& shape, std::string const& dtype);
// A tensor of whole numbers, I64 or I32.
Tensor whole_tensor_of(std::vector<int64_t> const& values, std::vector<int64_t> const& shape, std::string const& dtype);

}  // namespace svdq
