// Text to token ids and back: Qwen2's byte-level BPE, with the ids of Hugging Face's tokenizers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "package/package.h"

namespace q2export::runtime
{

// Token ids to text as they come; a character whose bytes are spread over tokens is never shown half. The texts
// returned, joined, are the decoding of all tokens at once.
class Detokenizer
{
public:
    virtual ~Detokenizer() = default;

    // The text that a token completes; that of a special token is empty.
    virtual std::string feed(int64_t token) = 0;

    // The rest, at the end of the text: U+FFFD for an incomplete character, or nothing.
    virtual std::string flush() = 0;
};

// Bytes of a text, from the first to before the last.
struct Span
{
    size_t start = 0;
    size_t end = 0;
};

struct EncodeOptions
{
    bool add_special_tokens = true;      // those the tokenizer puts around a text
    bool special_tokens_as_text = false; // what reads like a special token stays text
    std::optional<size_t> most_tokens;   // a longer text, for certain, is refused before it is encoded
    std::vector<Span> given;             // in order: what reads like an added token in them stays text
};

// The tokenizer of a package. Several threads may use it at once.
class Tokenizer
{
public:
    virtual ~Tokenizer() = default;

    // Throws GenerationError: the text is not UTF-8, or too long, or a span is not of its characters.
    virtual std::vector<int64_t> encode(std::string_view text, EncodeOptions const& options) const = 0;

    // Bytes that are not UTF-8 become U+FFFD; ids without a token are left out.
    virtual std::string decode(std::vector<int64_t> const& token_ids, bool skip_special_tokens = true) const = 0;

    // It refers to the tokenizer, which must outlive it.
    virtual std::unique_ptr<Detokenizer> detokenizer() const = 0;

    // The id of a special token by its text.
    virtual std::optional<int64_t> special_token_id(std::string_view text) const = 0;

    // One more than the largest token id.
    virtual size_t size() const = 0;
};

// Of a folder with tokenizer.json and, where there is one, tokenizer_config.json. Throws ConfigError.
std::unique_ptr<Tokenizer> read_tokenizer(std::string const& folder);

// Null where the package has no tokenizer.json. Throws ConfigError, also where it is of another model.
std::unique_ptr<Tokenizer> open_tokenizer(Package const& package);

} // namespace q2export::runtime
