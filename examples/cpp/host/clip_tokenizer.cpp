// CLIP's tokenizer: words by a pattern, their bytes as letters, and the merges of byte pairs.
#include <unicode/locid.h>
#include <unicode/normalizer2.h>
#include <unicode/regex.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <array>
#include <limits>
#include <memory>
#include <sstream>
#include <unordered_map>

#include "files.h"
#include "tokenizer.h"

namespace svdq {
namespace {

constexpr char const* kWords =
    R"(<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\p{White_Space}\p{L}\p{N}]+)";
// of GPT-2, whose byte-level tokenizer CLIP's words go through; they have no white space
constexpr char const* kByteLevel = R"('s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\p{White_Space}\p{L}\p{N}]+)";

void check(UErrorCode code) {
    if (U_FAILURE(code)) throw Error("ICU", u_errorName(code), "success");
}

class Pattern {
public:
    explicit Pattern(char const* text) {
        UErrorCode code = U_ZERO_ERROR;
        pattern_.reset(icu::RegexPattern::compile(icu::UnicodeString::fromUTF8(text), 0, code));
        check(code);
    }

    // f(each match) in a text.
    template <class F>
    void each(icu::UnicodeString const& text, F f) const {
        UErrorCode code = U_ZERO_ERROR;
        std::unique_ptr<icu::RegexMatcher> const matcher(pattern_->matcher(text, code));
        check(code);
        while (matcher->find(code)) f(matcher->group(code));
        check(code);
    }

private:
    std::unique_ptr<icu::RegexPattern> pattern_;
};

std::string utf8(icu::UnicodeString const& text) {
    std::string found;
    return text.toUTF8String(found);
}

// A byte's letter: itself where it is visible in Latin-1, or one from U+0100 on.
std::array<std::string, 256> byte_letters() {
    std::array<std::string, 256> letters;
    UChar32 next = 256;
    for (UChar32 byte = 0; byte < 256; ++byte) {
        bool const visible = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        letters[static_cast<size_t>(byte)] = utf8(icu::UnicodeString(visible ? byte : next++));
    }
    return letters;
}

class ClipTokenizer final : public Tokenizer {
public:
    ClipTokenizer(PipelineFolder const& folder, std::string const& component) : words_(kWords), parts_(kByteLevel) {
        std::string const whole = component + "/tokenizer.json";
        if (folder.has(whole)) {
            read_model(folder.object(whole), folder.file(whole));
        } else {
            read_vocabulary(folder.object(component + "/vocab.json"), folder.file(component + "/vocab.json"));
            std::istringstream lines(read_file(folder.file(component + "/merges.txt"), "merges of byte pairs"));
            for (std::string line; std::getline(lines, line);) {
                if (!line.empty() && line.rfind("#version", 0) != 0) add_merge(line);
            }
        }
        read_tokens(folder, component,
                    {{"bos_token", "<|startoftext|>"},
                     {"eos_token", "<|endoftext|>"},
                     {"unk_token", "<|endoftext|>"},
                     {"pad_token", "<|endoftext|>"}});
        before_ = {special("bos_token")}, after_ = {special("eos_token")};
    }

protected:
    // NFC, a space for white space, small letters one by one.
    std::string normalized(std::string const& text) const override {
        UErrorCode code = U_ZERO_ERROR;
        auto const* nfc = icu::Normalizer2::getNFCInstance(code);
        check(code);
        icu::UnicodeString const composed = nfc->normalize(icu::UnicodeString::fromUTF8(text), code);
        check(code);
        icu::UnicodeString found;
        bool space = false;
        for (int32_t at = 0; at < composed.length(); at = composed.moveIndex32(at, 1)) {
            UChar32 const character = composed.char32At(at);
            bool const is_space = u_isUWhiteSpace(character);
            if (!is_space) found.append(icu::UnicodeString(character).toLower(icu::Locale::getRoot()));
            if (is_space && !space) found.append(u' ');
            space = is_space;
        }
        return utf8(found);
    }

    std::vector<int64_t> pieces(std::string const& text) const override {
        std::vector<int64_t> ids;
        words_.each(icu::UnicodeString::fromUTF8(text), [&](icu::UnicodeString const& word) {
            parts_.each(word, [&](icu::UnicodeString const& part) { merge(utf8(part), ids); });
        });
        return ids;
    }

    int64_t find(std::string const& content) const override {
        auto const found = vocabulary_.find(content);
        return found == vocabulary_.end() ? -1 : found->second;
    }

private:
    void read_model(Json const& file, std::string const& where) {
        Json const& model = member(file, "model", where);
        read_vocabulary(member(model, "vocab", where), where);
        for (Json const& merge : member_as<Json::array_t>(model, "merges", where)) {
            bool const pair = merge.is_array() && merge.size() == 2;
            add_merge(pair ? value_as<std::string>(merge[0], where) + " " + value_as<std::string>(merge[1], where)
                           : value_as<std::string>(merge, where + ": merges"));
        }
    }

    void read_vocabulary(Json const& entries, std::string const& where) {
        for (auto const& [token, id] : value_as<Json::object_t>(entries, where)) {
            vocabulary_[token] = value_as<int64_t>(id, where);
        }
    }

    void add_merge(std::string const& pair) { ranks_.emplace(pair, ranks_.size()); }

    // The ids of a word: of its letters, of which the pair that was learnt first becomes one, until there is none.
    void merge(std::string const& word, std::vector<int64_t>& ids) const {
        static std::array<std::string, 256> const kLetters = byte_letters();
        std::vector<std::string> symbols;
        for (char byte : word) symbols.push_back(kLetters[static_cast<unsigned char>(byte)]);
        symbols.back() += "</w>";
        while (symbols.size() > 1) {
            size_t best = std::numeric_limits<size_t>::max(), at = 0;
            for (size_t i = 0; i + 1 < symbols.size(); ++i) {
                auto const found = ranks_.find(symbols[i] + " " + symbols[i + 1]);
                if (found != ranks_.end() && found->second < best) best = found->second, at = i;
            }
            if (best == std::numeric_limits<size_t>::max()) break;
            symbols[at] += symbols[at + 1];
            symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
        }
        for (std::string const& symbol : symbols) {
            int64_t const id = find(symbol);
            ids.push_back(id < 0 ? special("unk_token") : id);
        }
    }

    Pattern words_, parts_;
    std::unordered_map<std::string, int64_t> vocabulary_;
    std::unordered_map<std::string, size_t> ranks_;  // "a b": which merge it is
};

}  // namespace

std::unique_ptr<Tokenizer> read_clip_tokenizer(PipelineFolder const& folder, std::string const& component) {
    return std::make_unique<ClipTokenizer>(folder, component);
}

}  // namespace svdq
