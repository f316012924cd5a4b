#include "json.h"

#include <cmath>
#include <cstdlib>

#include "error.h"

namespace svdq {

// Recursive descent over text[pos_...]; strangers' files: depth and sizes are bounded by the text itself and kMaxDepth.
class JsonReader {
public:
    JsonReader(std::string const& text, std::string const& where) : text_(text), where_(where) {}

    Json document() {
        Json value = read(0);
        if (space() != text_.size()) fail("text after the value");
        return value;
    }

private:
    static constexpr int kMaxDepth = 64;

    [[noreturn]] void fail(std::string const& got) const {
        throw Error(where_, got + " at byte " + std::to_string(pos_), "JSON");
    }

    size_t space() {
        pos_ = text_.find_first_not_of(" \t\r\n", pos_);
        if (pos_ == std::string::npos) pos_ = text_.size();
        return pos_;
    }

    bool take(char c) {
        if (space() < text_.size() && text_[pos_] == c) return ++pos_, true;
        return false;
    }

    void need(char c) {
        if (!take(c)) fail(std::string("no '") + c + "'");
    }

    Json read(int depth) {
        if (depth > kMaxDepth) fail("nested too deep");
        if (space() >= text_.size()) fail("the end");
        Json value;
        value.where_ = where_;
        char const c = text_[pos_];
        if (c == '{') {
            object(value, depth);
        } else if (c == '[') {
            value.kind_ = Json::Kind::kArray;
            ++pos_;
            if (!take(']')) {
                do value.items_.push_back(read(depth + 1));
                while (take(','));
                need(']');
            }
        } else if (c == '"') {
            value.kind_ = Json::Kind::kString;
            value.string_ = string();
        } else if (word("true") || word("false")) {
            value.kind_ = Json::Kind::kBool;
            value.string_ = c == 't' ? "true" : "false";
        } else if (!word("null")) {
            number(value);
        }
        return value;
    }

    void object(Json& value, int depth) {
        value.kind_ = Json::Kind::kObject;
        ++pos_;
        if (take('}')) return;
        do {
            space();
            std::string key = string();
            need(':');
            value.members_[key] = read(depth + 1);
        } while (take(','));
        need('}');
    }

    bool word(std::string const& name) {
        if (text_.compare(pos_, name.size(), name) != 0) return false;
        pos_ += name.size();
        return true;
    }

    void number(Json& value) {
        char const* begin = text_.c_str() + pos_;
        char* end = nullptr;
        value.kind_ = Json::Kind::kNumber;
        value.number_ = std::strtod(begin, &end);
        if (end == begin || !std::isfinite(value.number_)) fail("no value");
        pos_ += static_cast<size_t>(end - begin);
    }

    std::string string() {
        need('"');
        std::string out;
        while (pos_ < text_.size() && text_[pos_] != '"') {
            char c = text_[pos_++];
            if (c == '\\') c = escape();
            out += c;
        }
        need('"');
        return out;
    }

    // A character beyond ASCII becomes '?': names and digests, all this program compares, have none.
    char escape() {
        if (pos_ >= text_.size()) fail("the end in a string");
        char const c = text_[pos_++];
        static char const kFrom[] = "\"\\/bfnrt";
        static char const kTo[] = "\"\\/\b\f\n\r\t";
        for (int i = 0; i < 8; ++i)
            if (c == kFrom[i]) return kTo[i];
        if (c != 'u' || pos_ + 4 > text_.size()) fail("an unknown escape");
        long const code = std::strtol(text_.substr(pos_, 4).c_str(), nullptr, 16);
        pos_ += 4;
        return code < 128 ? static_cast<char>(code) : '?';
    }

    std::string const& text_;
    std::string const& where_;
    size_t pos_ = 0;
};

Json Json::parse(std::string const& text, std::string const& where) { return JsonReader(text, where).document(); }

Json const& Json::expect(Kind kind, char const* name) const {
    if (kind_ != kind) throw Error(where_, "another type", name);
    return *this;
}

Json const& Json::at(std::string const& key) const {
    auto const found = expect(Kind::kObject, "an object").members_.find(key);
    if (found == members_.end()) throw Error(where_, "no field \"" + key + "\"", "one");
    return found->second;
}

std::string const& Json::string() const { return expect(Kind::kString, "a string").string_; }
bool Json::boolean() const { return expect(Kind::kBool, "true or false").string_ == "true"; }
std::vector<Json> const& Json::array() const { return expect(Kind::kArray, "an array").items_; }
std::map<std::string, Json> const& Json::object() const { return expect(Kind::kObject, "an object").members_; }

int64_t Json::integer() const {
    double const value = expect(Kind::kNumber, "a number").number_;
    if (value != std::floor(value) || std::fabs(value) > 9007199254740992.0)
        throw Error(where_, "a fraction", "a whole number");
    return static_cast<int64_t>(value);
}

}  // namespace svdq
