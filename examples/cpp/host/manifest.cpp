#include "manifest.h"

#include <map>

#include "error.h"
#include "numbers.h"

namespace svdq {
namespace {

constexpr int64_t kLargest = INT32_MAX;  // of a size: products of a few cannot overflow

struct Seen {
    int64_t size;
    std::string owner;
};

std::vector<int64_t> sizes_of(Json const& shape, char const* bound, std::string const& where) {
    std::vector<int64_t> sizes;
    for (Json const& item : member_as<Json::array_t>(shape, bound, where)) {
        sizes.push_back(value_as<int64_t>(item, where));
        if (sizes.back() < 0 || sizes.back() > kLargest) {
            throw Error(where, "a size of " + std::to_string(sizes.back()), "0 to " + std::to_string(kLargest));
        }
    }
    return sizes;
}

Input read_input(Json const& entry, std::string const& path) {
    std::string const where = path + ": inputs";
    Json const& shape = member(entry, "shape", where);
    Input input{member_as<std::string>(entry, "name", where),
                dtype_name(member_as<std::string>(entry, "dtype", where)),
                sizes_of(shape, "min", where),
                sizes_of(shape, "opt", where),
                sizes_of(shape, "max", where),
                {}};
    for (Json const& axis : member_or<Json::array_t>(entry, "axes", where, {})) {
        input.axes.push_back(value_as<std::string>(axis, where));
    }
    bool const whole = input.axes.empty() || input.axes.size() == input.low.size();
    if (input.low.size() != input.high.size() || input.low.size() != input.best.size() || !whole) {
        throw Error(where, "'" + input.name + "' with lists of several lengths", "one length");
    }
    return input;
}

std::string range_of(Input const& input) {
    std::string text = "[";
    for (size_t i = 0; i < input.low.size(); ++i) {
        text += (i ? ", " : "") + std::to_string(input.low[i]);
        if (input.low[i] != input.high[i]) text += ".." + std::to_string(input.high[i]);
    }
    return text + "]";
}

// The number in front of "4*height", and the name behind it; 1 where there is none.
int64_t multiple_of(std::string const& axis, std::string& name) {
    size_t const star = axis.rfind('*');
    name = star == std::string::npos ? axis : axis.substr(star + 1);
    std::string const digits = star == std::string::npos ? "" : axis.substr(0, star);
    bool const number =
        !digits.empty() && digits.size() < 10 && digits.find_first_not_of("0123456789") == std::string::npos;
    int64_t const times = number ? std::stoll(digits) : 1;
    return times > 0 ? times : 1;
}

void check_axes(Input const& input, std::vector<int64_t> const& shape, std::map<std::string, Seen>& seen) {
    std::string const where = "input '" + input.name + "'";
    for (size_t i = 0; i < input.axes.size(); ++i) {
        std::string const& axis = input.axes[i];
        if (axis.empty()) continue;
        std::string name;
        int64_t const times = multiple_of(axis, name), below = shape[i] - shape[i] % times;
        std::string const got = name + " " + std::to_string(shape[i]);
        if (below != shape[i]) {
            std::string const above = std::to_string(below + times);
            std::string const near = below ? std::to_string(below) + " or " + above : above;
            throw Error(where, got, "a multiple of " + std::to_string(times) + ", as " + near);
        }
        Seen const& first = seen.emplace(axis, Seen{shape[i], input.name}).first->second;
        if (shape[i] != first.size) {
            throw Error(where, got, std::to_string(first.size) + ", as in '" + first.owner + "'");
        }
    }
}

}  // namespace

Manifest read_manifest(std::string const& folder) {
    std::string const path = folder + "/manifest.json";
    Manifest manifest{path, read_object(path, "an engine manifest"), {}};
    if (member_as<int64_t>(manifest.data, "version", path) != 1) throw Error(path, "another version", "1");
    for (Json const& entry : member_or<Json::array_t>(manifest.data, "inputs", path, {})) {
        manifest.inputs.push_back(read_input(entry, path));
    }
    return manifest;
}

void check_shape(Input const& input, std::vector<int64_t> const& shape) {
    bool fits = shape.size() == input.low.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) fits = input.low[i] <= shape[i] && shape[i] <= input.high[i];
    if (!fits) throw Error("input '" + input.name + "'", "shape " + text_of(shape), range_of(input));
}

void check_inputs(std::vector<Input> const& inputs, Tensors const& given) {
    std::map<std::string, Seen> seen;
    for (Input const& input : inputs) {
        auto const found = given.find(input.name);
        if (found == given.end()) throw Error("input '" + input.name + "'", "missing", "a tensor");
        check_shape(input, found->second.shape);
        check_axes(input, found->second.shape, seen);
    }
}

}  // namespace svdq
