// The tokenizers of text encoders, with the token ids of transformers'.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pipeline_folder.h"

namespace svdq {

struct Encoded {
    std::vector<int64_t> ids;  // with the tokens around a text; its end cut off or padded to the length asked for
    size_t needed = 0;         // of the whole text
};

// Text between added tokens is left to the kind of tokenizer; added tokens, such as <|endoftext|>, count as themselves.
class Tokenizer {
public:
    virtual ~Tokenizer() = default;

    // Throws Error: text that is not UTF-8.
    Encoded encode(std::string const& text, size_t length) const;

protected:
    struct Added {
        std::string content;
        int64_t id;
        bool in_normalized;              // looked for in normalized text, not in the text as it was given
        bool strips_left, strips_right;  // takes the white space beside it along
    };

    // Reads the names of special tokens, such as pad_token, and the added tokens of the files. Throws Error.
    void read_tokens(PipelineFolder const& folder, std::string const& component,
                     std::vector<std::pair<char const*, char const*>> const& specials);
    // The id of a special token by its name in the config.
    int64_t special(std::string const& name) const;

    virtual std::string normalized(std::string const& text) const = 0;
    // The ids of normalized text.
    virtual std::vector<int64_t> pieces(std::string const& text) const = 0;
    // The id of a token by its content, -1 where there is none.
    virtual int64_t find(std::string const& content) const = 0;

    std::vector<int64_t> before_, after_;  // around every text

private:
    // An entry of the added tokens, or a special token's name; the last of one content counts.
    void add(Json const& entry, int64_t own_id, std::string const& where);
    void split(std::string const& text, bool normal, std::vector<int64_t>& ids) const;

    std::vector<Added> added_;
    std::vector<std::pair<std::string, int64_t>> specials_;
};

// The tokenizer of a component, by its class in the folder's index. Throws Error: files that are missing or damaged.
std::unique_ptr<Tokenizer> read_tokenizer(PipelineFolder const& folder, std::string const& component);
std::unique_ptr<Tokenizer> read_clip_tokenizer(PipelineFolder const& folder, std::string const& component);
std::unique_ptr<Tokenizer> read_t5_tokenizer(PipelineFolder const& folder, std::string const& component);

}  // namespace svdq
