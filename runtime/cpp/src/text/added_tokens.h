// Tokens that are found in a text as they are, before it is normalized: special tokens and other added ones.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace q2export::runtime::text
{

struct AddedToken
{
    int64_t id = 0;
    std::string content; // at least one byte
    bool special = false;
};

class AddedTokens
{
public:
    struct Match
    {
        size_t start;
        AddedToken const* token;
    };

    // Contents differ.
    explicit AddedTokens(std::vector<AddedToken> tokens = {});

    // The first token in the text from `at` on; of several that begin there, the longest.
    std::optional<Match> find(std::string_view text, size_t at) const;

    // The token of exactly this text, or null.
    AddedToken const* of_content(std::string_view content) const;

    std::vector<AddedToken> const& all() const
    {
        return tokens_;
    }

private:
    std::pair<size_t, size_t> narrowed(std::pair<size_t, size_t> range, size_t depth, unsigned char byte) const;

    std::vector<AddedToken> tokens_; // by content
    bool begins_[256] = {};          // whether a token begins with the byte
};

} // namespace q2export::runtime::text
