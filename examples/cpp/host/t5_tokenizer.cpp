// T5's tokenizer: SentencePiece, from its own file or from what tokenizer.json holds of it.
#include <openssl/evp.h>
#include <sentencepiece_processor.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <cstring>
#include <set>

#include "files.h"
#include "tokenizer.h"

namespace svdq {
namespace {

// A message of Protocol Buffers, as SentencePiece's file is one.
class Message {
public:
    void whole(unsigned field, uint64_t value) {
        varint(field << 3);
        varint(value);
    }

    void number(unsigned field, float value) {
        varint(field << 3 | 5);
        uint32_t bits = 0;
        std::memcpy(&bits, &value, sizeof(bits));
        for (int i = 0; i < 4; ++i) bytes_ += static_cast<char>(bits >> (8 * i));
    }

    void bytes(unsigned field, std::string const& value) {
        varint(field << 3 | 2);
        varint(value.size());
        bytes_ += value;
    }

    std::string const& done() const { return bytes_; }

private:
    void varint(uint64_t value) {
        for (; value > 127; value >>= 7) bytes_ += static_cast<char>(value | 128);
        bytes_ += static_cast<char>(value);
    }

    std::string bytes_;
};

// Fields of sentencepiece_model.proto.
enum : unsigned { kPieces = 1, kNormalizer = 3, kPiece = 1, kScore = 2, kType = 3, kCharsmap = 2 };
enum : unsigned { kNormal = 1, kUnknown = 2, kControl = 3 };

std::string from_base64(std::string const& text, std::string const& where) {
    std::string found(text.size() / 4 * 3, '\0');
    int const size =
        EVP_DecodeBlock(reinterpret_cast<unsigned char*>(found.data()),
                        reinterpret_cast<unsigned char const*>(text.data()), static_cast<int>(text.size()));
    if (size < 0) throw Error(where, "a precompiled_charsmap that is not base64", "base64");
    size_t const padding = text.size() - text.find_last_not_of('=') - 1;
    found.resize(static_cast<size_t>(size) - padding);
    return found;
}

// The table of a tokenizer.json that says which characters become which; empty where it has none.
std::string charsmap(Json const& file, std::string const& where) {
    Json const normalizer = member_or<Json::object_t>(file, "normalizer", where, {});
    Json const list = member_or<Json::array_t>(normalizer, "normalizers", where, {normalizer});
    for (Json const& one : list) {
        auto const text = member_or<std::string>(one, "precompiled_charsmap", where, "");
        if (!text.empty()) return from_base64(text, where);
    }
    return "";
}

// SentencePiece's file of the vocabulary in a tokenizer.json.
std::string model_of(Json const& file, std::string const& where, std::string const& table) {
    Json const& model = member(file, "model", where);
    if (member_or<std::string>(model, "type", where, "Unigram") != "Unigram") throw Error(where, "no Unigram", "one");
    auto const unknown = member_as<int64_t>(model, "unk_id", where);
    std::set<std::string> control;
    for (Json const& entry : member_or<Json::array_t>(file, "added_tokens", where, {})) {
        control.insert(member_as<std::string>(entry, "content", where));
    }
    Message found;
    int64_t id = 0;
    for (Json const& entry : member_as<Json::array_t>(model, "vocab", where)) {
        auto const pair = value_as<Json::array_t>(entry, where + ": vocab");
        if (pair.size() != 2) throw Error(where + ": vocab", "an entry of another length", "a piece and its score");
        auto const text = value_as<std::string>(pair[0], where);
        Message piece;
        piece.bytes(kPiece, text);
        piece.number(kScore, static_cast<float>(value_as<double>(pair[1], where)));
        piece.whole(kType, id++ == unknown ? kUnknown : control.count(text) ? kControl : kNormal);
        found.bytes(kPieces, piece.done());
    }
    Message normalizer;
    normalizer.bytes(kCharsmap, table);
    found.bytes(kNormalizer, normalizer.done());
    return found.done();
}

class T5Tokenizer final : public Tokenizer {
public:
    T5Tokenizer(PipelineFolder const& folder, std::string const& component) {
        std::string const own = component + "/spiece.model", whole = component + "/tokenizer.json";
        if (folder.has(own)) {
            load(read_file(folder.file(own), "a SentencePiece model"), folder.file(own));
        } else {
            Json const file = folder.object(whole);
            std::string const table = charsmap(file, whole);
            has_table_ = !table.empty();
            load(model_of(file, whole, table), folder.file(whole));
        }
        read_tokens(folder, component, {{"eos_token", "</s>"}, {"unk_token", "<unk>"}, {"pad_token", "<pad>"}});
        after_ = {special("eos_token")};
    }

protected:
    // SentencePiece does it.
    std::string normalized(std::string const& text) const override { return text; }

    std::vector<int64_t> pieces(std::string const& text) const override {
        std::vector<int> ids;
        auto const status = processor_.Encode(with_spaces(text), &ids);
        if (!status.ok()) throw Error("prompt", status.ToString(), "text");
        return {ids.begin(), ids.end()};
    }

    int64_t find(std::string const& content) const override {
        int const id = processor_.PieceToId(content);
        return processor_.IdToPiece(id) == content ? id : -1;
    }

private:
    void load(std::string const& model, std::string const& where) {
        auto const status = processor_.LoadFromSerializedProto(model);
        if (!status.ok()) throw Error(where, status.ToString(), "a SentencePiece model");
    }

    // transformers splits at all white space; SentencePiece at what its table makes a space, if it has one.
    std::string with_spaces(std::string const& text) const {
        icu::UnicodeString found = icu::UnicodeString::fromUTF8(text);
        for (int32_t i = 0; i < found.length(); ++i) {             // all white space is of the basic plane
            bool const dropped = has_table_ && found[i] == u'\v';  // T5's table makes nothing of it
            if (u_isUWhiteSpace(found[i]) && !dropped) found.setCharAt(i, u' ');
        }
        std::string changed;
        return found.toUTF8String(changed);
    }

    sentencepiece::SentencePieceProcessor processor_;
    bool has_table_ = true;
};

}  // namespace

std::unique_ptr<Tokenizer> read_t5_tokenizer(PipelineFolder const& folder, std::string const& component) {
    return std::make_unique<T5Tokenizer>(folder, component);
}

}  // namespace svdq
