// Text to token ids and back: the seam between generation and tokenizers.
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

// Token ids to text as they come; a character whose bytes are spread over tokens is never shown half.
class Detokenizer
{
public:
    virtual ~Detokenizer() = default;

    // The text that a token completes.
    virtual std::string feed(int64_t token) = 0;

    // The rest, at the end of the text: U+FFFD for an incomplete character, or nothing.
    virtual std::string flush() = 0;
};

struct EncodeOptions
{
    bool add_special_tokens = true;     // those the tokenizer puts around a prompt
    std::optional<size_t> most_tokens; // a longer text is refused
};

// The tokenizer of a package. Several threads may use it at once.
class Tokenizer
{
public:
    virtual ~Tokenizer() = default;

    virtual std::vector<int64_t> encode(std::string_view text, EncodeOptions const& options) const = 0;
    virtual std::string decode(std::vector<int64_t> const& token_ids) const = 0;
    virtual std::unique_ptr<Detokenizer> detokenizer() const = 0;

    // The id of a special token by its text.
    virtual std::optional<int64_t> special_token_id(std::string_view text) const = 0;
};

// Null where the package has no tokenizer.json. Throws ConfigError.
std::unique_ptr<Tokenizer> open_tokenizer(Package const& package);

} // namespace q2export::runtime
