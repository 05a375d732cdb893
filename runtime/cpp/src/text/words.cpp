#include "words.h"

#include <cstdint>

#include "text/unicode.h"

namespace q2export::runtime::text
{
namespace
{

constexpr uint8_t kAnyKind = kLetter | kNumber | kSpace;

bool is_newline(uint32_t code)
{
    return code == '\n' || code == '\r';
}

// A character, its kind, and where the next one begins.
struct Character
{
    uint32_t code = 0;
    uint8_t kind = 0;
    size_t end = 0;

    Character(std::string_view text, size_t at)
        : end(at)
    {
        code = next_code(text, end);
        kind = kinds_of(code) & kAnyKind;
    }
};

template <typename Wanted>
size_t skip(std::string_view text, size_t at, Wanted const& wanted)
{
    while (at < text.size())
    {
        Character const each(text, at);
        if (!wanted(each))
        {
            break;
        }
        at = each.end;
    }
    return at;
}

size_t skip_letters(std::string_view text, size_t at)
{
    return skip(text, at, [](Character const& each) { return each.kind == kLetter; });
}

// The end of s, t, re, ve, m, ll or d in any case; 0 where there is none.
size_t contraction_end(std::string_view text, size_t at)
{
    if (at == text.size())
    {
        return 0;
    }
    Character const first(text, at);
    char const letter = contraction_letter(first.code);
    if (letter == 's' || letter == 't' || letter == 'm' || letter == 'd')
    {
        return first.end;
    }
    if ((letter != 'r' && letter != 'v' && letter != 'l') || first.end == text.size())
    {
        return 0;
    }
    Character const second(text, first.end);
    return contraction_letter(second.code) == (letter == 'l' ? 'l' : 'e') ? second.end : 0;
}

// \s*[\r\n]+|\s+(?!\S)|\s+
size_t spaces_end(std::string_view text, size_t at)
{
    size_t const start = at;
    size_t last = at;          // where the last character of the run begins
    size_t after_newline = at; // where the last newline of the run ends
    size_t const end = skip(text, at, [&](Character const& each) {
        if (each.kind == kSpace)
        {
            last = at;
            at = each.end;
            after_newline = is_newline(each.code) ? each.end : after_newline;
        }
        return each.kind == kSpace;
    });
    if (after_newline != start)
    {
        return after_newline;
    }
    // The last space of several belongs to the word after them.
    return end == text.size() || last == start ? end : last;
}

} // namespace

size_t word_end(std::string_view text, size_t at)
{
    Character const first(text, at);
    if (first.code == '\'')
    {
        if (size_t const end = contraction_end(text, first.end))
        {
            return end;
        }
    }
    bool const more = first.end < text.size();
    uint8_t const next = more ? Character(text, first.end).kind : 0;
    // [^\r\n\p{L}\p{N}]?\p{L}+
    if (first.kind == kLetter || (first.kind != kNumber && !is_newline(first.code) && next == kLetter))
    {
        return skip_letters(text, first.end);
    }
    if (first.kind == kNumber)
    {
        return first.end;
    }
    //  ?[^\s\p{L}\p{N}]+[\r\n]*
    if (first.kind == 0 || (first.code == ' ' && more && next == 0))
    {
        size_t const end = skip(text, first.end, [](Character const& each) { return each.kind == 0; });
        return skip(text, end, [](Character const& each) { return is_newline(each.code); });
    }
    return spaces_end(text, at);
}

} // namespace q2export::runtime::text
