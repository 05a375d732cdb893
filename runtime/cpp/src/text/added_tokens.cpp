#include "added_tokens.h"

#include <algorithm>

namespace q2export::runtime::text
{
namespace
{

unsigned char byte_of(AddedToken const& token, size_t at)
{
    return static_cast<unsigned char>(token.content[at]);
}

} // namespace

AddedTokens::AddedTokens(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens))
{
    std::sort(tokens_.begin(), tokens_.end(), [](auto const& left, auto const& right) { return left.content < right.content; });
    for (AddedToken const& each : tokens_)
    {
        begins_[byte_of(each, 0)] = true;
    }
}

// Of tokens that begin alike for `depth` bytes and are longer, those with the byte next.
std::pair<size_t, size_t> AddedTokens::narrowed(std::pair<size_t, size_t> range, size_t depth, unsigned char byte) const
{
    auto const first = tokens_.begin() + static_cast<ptrdiff_t>(range.first);
    auto const last = tokens_.begin() + static_cast<ptrdiff_t>(range.second);
    auto const low
        = std::lower_bound(first, last, byte, [depth](auto const& each, unsigned char wanted) { return byte_of(each, depth) < wanted; });
    auto const high
        = std::upper_bound(low, last, byte, [depth](unsigned char wanted, auto const& each) { return wanted < byte_of(each, depth); });
    return {static_cast<size_t>(low - tokens_.begin()), static_cast<size_t>(high - tokens_.begin())};
}

std::optional<AddedTokens::Match> AddedTokens::find(std::string_view text, size_t at) const
{
    for (; at < text.size(); ++at)
    {
        if (!begins_[static_cast<unsigned char>(text[at])])
        {
            continue;
        }
        AddedToken const* longest = nullptr;
        std::pair<size_t, size_t> range{0, tokens_.size()};
        for (size_t depth = 0; at + depth < text.size() && range.first < range.second; ++depth)
        {
            range = narrowed(range, depth, static_cast<unsigned char>(text[at + depth]));
            if (range.first < range.second && tokens_[range.first].content.size() == depth + 1)
            {
                longest = &tokens_[range.first++]; // the shortest comes first
            }
        }
        if (longest != nullptr)
        {
            return Match{at, longest};
        }
    }
    return std::nullopt;
}

AddedToken const* AddedTokens::of_content(std::string_view content) const
{
    auto const found = std::lower_bound(
        tokens_.begin(), tokens_.end(), content, [](auto const& each, std::string_view wanted) { return each.content < wanted; });
    return found != tokens_.end() && found->content == content ? &*found : nullptr;
}

} // namespace q2export::runtime::text
