#include "tokenizer.h"

#include <unicode/utf8.h>

#include <algorithm>

namespace svdq {
namespace {

constexpr char const* kSpaces = " \t\r\n";

void require_utf8(std::string const& text) {
    auto const size = static_cast<int32_t>(text.size());
    for (int32_t at = 0; at < size;) {
        UChar32 character = 0;
        U8_NEXT(text.data(), at, size, character);
        if (character < 0) throw Error("text", "a byte at " + std::to_string(at - 1) + " that is not UTF-8", "UTF-8");
    }
}

Json object_if_any(PipelineFolder const& folder, std::string const& name) {
    return folder.has(name) ? folder.object(name) : Json::object();
}

}  // namespace

Encoded Tokenizer::encode(std::string const& text, size_t length) const {
    require_utf8(text);
    std::vector<int64_t> own;
    split(text, false, own);
    size_t const around = before_.size() + after_.size(), kept = std::min(own.size(), length - around);
    Encoded found{before_, own.size() + around};
    found.ids.insert(found.ids.end(), own.begin(), own.begin() + static_cast<std::ptrdiff_t>(kept));
    found.ids.insert(found.ids.end(), after_.begin(), after_.end());
    found.ids.resize(length, special("pad_token"));
    return found;
}

void Tokenizer::split(std::string const& text, bool normal, std::vector<int64_t>& ids) const {
    auto const between = [&](std::string const& part) {
        if (!normal) return split(normalized(part), true, ids);
        auto const found = pieces(part);
        ids.insert(ids.end(), found.begin(), found.end());
    };
    size_t from = 0;
    while (from < text.size()) {
        Added const* best = nullptr;  // the first in the text, and of those there the longest
        size_t at = std::string::npos;
        for (Added const& one : added_) {
            size_t const found = one.in_normalized == normal ? text.find(one.content, from) : std::string::npos;
            bool const longer = best && found == at && one.content.size() > best->content.size();
            if (found != std::string::npos && (found < at || longer)) best = &one, at = found;
        }
        std::string part = text.substr(from, best ? at - from : at);
        if (best && best->strips_left) part.erase(part.find_last_not_of(kSpaces) + 1);
        if (!part.empty()) between(part);
        if (!best) return;
        ids.push_back(best->id);
        from = at + best->content.size();
        if (best->strips_right) from = text.find_first_not_of(kSpaces, from);
    }
}

void Tokenizer::add(Json const& entry, int64_t own_id, std::string const& where) {
    bool const named = entry.is_string();  // an entry has options beside its content
    Added one{named ? entry.get<std::string>() : member_as<std::string>(entry, "content", where), own_id, false, false,
              false};
    auto const option = [&](char const* name) { return !named && member_or(entry, name, where, false); };
    if (option("single_word")) throw Error(where, one.content.substr(0, 80) + ": single_word", "false");
    one.in_normalized = option("normalized"), one.strips_left = option("lstrip"), one.strips_right = option("rstrip");
    if (int64_t const found = find(one.content); found >= 0) one.id = found;
    if (one.id < 0) throw Error(where, "the token " + one.content.substr(0, 80) + " without an id", "one in its files");
    auto const same = [&](Added const& other) { return other.content == one.content; };
    added_.erase(std::remove_if(added_.begin(), added_.end(), same), added_.end());
    added_.push_back(one);
}

void Tokenizer::read_tokens(PipelineFolder const& folder, std::string const& component,
                            std::vector<std::pair<char const*, char const*>> const& specials) {
    Json config = object_if_any(folder, component + "/tokenizer_config.json");
    if (config.contains("added_tokens_decoder")) {
        for (auto const& [id, entry] : member_as<Json::object_t>(config, "added_tokens_decoder", component)) {
            bool const digits = id.find_first_not_of("0123456789") == std::string::npos && id.size() < 10;
            add(entry, digits ? std::stoll(id) : -1, component);
        }
    } else {
        config.update(object_if_any(folder, component + "/special_tokens_map.json"));
        Json const whole = object_if_any(folder, component + "/tokenizer.json");
        for (Json const& entry : member_or<Json::array_t>(whole, "added_tokens", component, {})) {
            add(entry, member_or<int64_t>(entry, "id", component, -1), component);
        }
    }
    auto const listed = added_;
    for (auto const& [name, otherwise] : specials) {
        auto const given = config.find(name);
        Json const token = given == config.end() || given->is_null() ? Json(otherwise) : *given;
        auto const content = token.is_string() ? token : member(token, "content", component);
        auto const same = [&](Added const& one) { return one.content == content; };
        if (std::none_of(listed.begin(), listed.end(), same)) add(token, -1, component);
        specials_.emplace_back(name, std::find_if(added_.begin(), added_.end(), same)->id);
    }
    for (Added& one : added_) {
        if (one.in_normalized) one.content = normalized(one.content);
    }
}

int64_t Tokenizer::special(std::string const& name) const {
    auto const found = std::find_if(specials_.begin(), specials_.end(), [&](auto const& s) { return s.first == name; });
    return found->second;
}

std::unique_ptr<Tokenizer> read_tokenizer(PipelineFolder const& folder, std::string const& component) {
    std::string const name = folder.class_of(component);
    if (name == "CLIPTokenizer" || name == "CLIPTokenizerFast") return read_clip_tokenizer(folder, component);
    if (name == "T5Tokenizer" || name == "T5TokenizerFast") return read_t5_tokenizer(folder, component);
    throw Error(component, "a " + name.substr(0, 80), "a CLIPTokenizer or a T5Tokenizer");
}

}  // namespace svdq
