// JSON, as much as manifest.json and the header of a .safetensors file need: objects, arrays, strings, numbers.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace svdq {

// A parsed value. Each accessor throws Error with `where` when the value has another type or is missing.
class Json {
public:
    enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };

    static Json parse(std::string const& text, std::string const& where);

    Json const& at(std::string const& key) const;
    bool has(std::string const& key) const { return members_.count(key) != 0; }
    std::string const& string() const;
    int64_t integer() const;  // a whole number of at most 2^53
    bool boolean() const;
    std::vector<Json> const& array() const;
    std::map<std::string, Json> const& object() const;
    Kind kind() const { return kind_; }

private:
    friend class JsonReader;
    Json const& expect(Kind kind, char const* name) const;

    Kind kind_ = Kind::kNull;
    double number_ = 0;
    std::string string_;  // also "true" or "false"
    std::vector<Json> items_;
    std::map<std::string, Json> members_;
    std::string where_;  // for messages
};

}  // namespace svdq
