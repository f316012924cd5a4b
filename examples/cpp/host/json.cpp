#include "json.h"

#include "files.h"

namespace svdq {

Json parse_object(std::string const& text, std::string const& where) {
    try {
        Json value = Json::parse(text);
        if (!value.is_object()) throw Error(where, std::string(value.type_name()), "an object");
        return value;
    } catch (Json::parse_error const& error) {
        throw Error(where, "a fault at byte " + std::to_string(error.byte), "JSON");
    } catch (Json::exception const&) {
        throw Error(where, "a number that is too large", "JSON");
    }
}

Json read_object(std::string const& path, std::string const& want) { return parse_object(read_file(path, want), path); }

Json const& member(Json const& object, std::string const& name, std::string const& where) {
    auto const found = object.find(name);
    if (found == object.end()) throw Error(where, "no '" + name + "'", "one");
    return *found;
}

}  // namespace svdq
