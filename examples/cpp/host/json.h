// nlohmann's JSON with errors that say where: members of strangers' files are read by the functions below.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "error.h"

namespace svdq {

using Json = nlohmann::json;

// The object in a text or a file; `where` names it in errors. Throw Error: not JSON, or not an object.
Json parse_object(std::string const& text, std::string const& where);
Json read_object(std::string const& path, std::string const& want);

// A member that is there. Throws Error.
Json const& member(Json const& object, std::string const& name, std::string const& where);

// A value as a T: std::string, int64_t, double, bool, or Json::array_t and Json::object_t. Throws Error: another type.
template <class T>
T value_as(Json const& value, std::string const& where) {
    bool fits = false;
    char const* want = "";
    if constexpr (std::is_same_v<T, bool>) {
        fits = value.is_boolean(), want = "true or false";
    } else if constexpr (std::is_same_v<T, std::string>) {
        fits = value.is_string(), want = "a string";
    } else if constexpr (std::is_integral_v<T>) {
        fits = value.is_number_integer(), want = "a whole number";
    } else if constexpr (std::is_floating_point_v<T>) {
        fits = value.is_number(), want = "a number";
    } else if constexpr (std::is_same_v<T, Json::array_t>) {
        fits = value.is_array(), want = "a list";
    } else {
        static_assert(std::is_same_v<T, Json::object_t>, "no JSON type");
        fits = value.is_object(), want = "an object";
    }
    if (!fits) throw Error(where, std::string(value.type_name()), want);
    return value.get<T>();
}

template <class T>
T member_as(Json const& object, std::string const& name, std::string const& where) {
    return value_as<T>(member(object, name, where), where + ": " + name);
}

// `otherwise` for a member that is missing or null.
template <class T>
T member_or(Json const& object, std::string const& name, std::string const& where, T const& otherwise) {
    auto const found = object.find(name);
    return found == object.end() || found->is_null() ? otherwise : value_as<T>(*found, where + ": " + name);
}

}  // namespace svdq
