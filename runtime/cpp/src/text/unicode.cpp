#include "unicode.h"

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

#include "json/json.h"

namespace q2export::runtime::text
{
namespace
{

struct Range
{
    uint32_t first;
    uint32_t last;
};

// Characters that are reordered; of their combining class only the order among classes matters.
struct ClassRange
{
    uint32_t first;
    uint32_t last;
    uint8_t place;
};

struct Fold
{
    uint32_t code;
    char letter;
};

struct Composition
{
    uint32_t first;
    uint32_t second;
    uint32_t composite;
};

// In full; zeros fill it up.
struct Decomposition
{
    uint32_t code;
    uint32_t parts[4];
};

#include "generated/unicode.inc"

constexpr uint32_t kCodes = 0x110000;
constexpr std::string_view kReplacement = "\xef\xbf\xbd"; // U+FFFD

// Hangul syllables are composed by arithmetic (Unicode 3.12).
constexpr uint32_t kSyllables = 0xac00;
constexpr uint32_t kLeading = 0x1100;
constexpr uint32_t kVowel = 0x1161;
constexpr uint32_t kTrailing = 0x11a7;
constexpr uint32_t kVowels = 21;
constexpr uint32_t kTrailings = 28;
constexpr uint32_t kLeadings = 19;

// One byte for each code point: looked up faster than searched for.
std::vector<uint8_t> make_kinds()
{
    std::vector<uint8_t> kinds(kCodes);
    auto const mark = [&kinds](auto const& ranges, uint8_t kind) {
        for (Range const& range : ranges)
        {
            for (uint32_t code = range.first; code <= range.last; ++code)
            {
                kinds[code] |= kind;
            }
        }
    };
    mark(kLetters, kLetter);
    mark(kNumbers, kNumber);
    mark(kSpaces, kSpace);
    mark(kUnsure, kUnsureKind);
    return kinds;
}

std::vector<uint8_t> const& kinds()
{
    static std::vector<uint8_t> const table = make_kinds();
    return table;
}

// Place of its combining class among all classes; 0 is a character that stays where it is.
uint8_t combining(uint32_t code)
{
    auto const* const found = std::upper_bound(std::begin(kCombining), std::end(kCombining), code,
        [](uint32_t each, ClassRange const& range) { return each < range.first; });
    return found != std::begin(kCombining) && code <= std::prev(found)->last ? std::prev(found)->place : 0;
}

void append_decomposed(std::vector<uint32_t>& out, uint32_t code)
{
    if (code - kSyllables < kLeadings * kVowels * kTrailings)
    {
        uint32_t const syllable = code - kSyllables;
        out.push_back(kLeading + syllable / (kVowels * kTrailings));
        out.push_back(kVowel + syllable / kTrailings % kVowels);
        if (syllable % kTrailings != 0)
        {
            out.push_back(kTrailing + syllable % kTrailings);
        }
        return;
    }
    auto const* const found = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), code,
        [](Decomposition const& each, uint32_t wanted) { return each.code < wanted; });
    if (found == std::end(kDecompositions) || found->code != code)
    {
        out.push_back(code);
        return;
    }
    for (uint32_t const part : found->parts)
    {
        if (part != 0)
        {
            out.push_back(part);
        }
    }
}

// The composite of two characters, or 0.
uint32_t composed(uint32_t first, uint32_t second)
{
    if (first - kLeading < kLeadings && second - kVowel < kVowels)
    {
        return kSyllables + ((first - kLeading) * kVowels + (second - kVowel)) * kTrailings;
    }
    uint32_t const syllable = first - kSyllables;
    if (syllable < kLeadings * kVowels * kTrailings && syllable % kTrailings == 0 && second - kTrailing - 1 < kTrailings - 1)
    {
        return first + (second - kTrailing);
    }
    auto const key = [](Composition const& each) { return static_cast<uint64_t>(each.first) << 32 | each.second; };
    uint64_t const wanted = static_cast<uint64_t>(first) << 32 | second;
    auto const* const found = std::lower_bound(std::begin(kCompositions), std::end(kCompositions), wanted,
        [&key](Composition const& each, uint64_t pair) { return key(each) < pair; });
    return found != std::end(kCompositions) && key(*found) == wanted ? found->composite : 0;
}

// Sort each run of characters that are reordered, keeping the order within a class.
void reorder(std::vector<uint32_t>& codes)
{
    for (auto at = codes.begin(); at != codes.end();)
    {
        if (combining(*at) == 0)
        {
            ++at;
            continue;
        }
        auto const end = std::find_if(at, codes.end(), [](uint32_t code) { return combining(code) == 0; });
        std::stable_sort(at, end, [](uint32_t left, uint32_t right) { return combining(left) < combining(right); });
        at = end;
    }
}

void compose(std::vector<uint32_t>& codes)
{
    constexpr size_t kNone = SIZE_MAX;
    size_t starter = kNone;
    size_t size = 0;
    uint8_t last = 0; // class of what was kept since the starter
    for (uint32_t const code : codes)
    {
        uint8_t const place = combining(code);
        if (starter != kNone && (last == 0 || last < place))
        {
            if (uint32_t const composite = composed(codes[starter], code))
            {
                codes[starter] = composite;
                continue;
            }
        }
        starter = place == 0 ? size : starter;
        last = place;
        codes[size++] = code;
    }
    codes.resize(size);
}

// Bytes of the character that begins here, or, with `whole` false, of the beginning of one that does not go on.
size_t character(std::string_view text, bool& whole)
{
    auto const byte = [&text](size_t i) { return static_cast<unsigned char>(text[i]); };
    unsigned char const first = byte(0);
    whole = first < 0x80;
    size_t const length = first < 0xc2 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 1;
    // Overlong forms, surrogates and what lies beyond the last plane begin in a way of their own.
    unsigned char low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned char high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    size_t at = 1;
    for (; at < length && at < text.size() && byte(at) >= low && byte(at) <= high; ++at)
    {
        low = 0x80;
        high = 0xbf;
    }
    whole = whole || (length > 1 && at == length);
    return at;
}

} // namespace

uint8_t kinds_of(uint32_t code)
{
    return kinds()[code];
}

char contraction_letter(uint32_t code)
{
    if (code < 0x80)
    {
        return static_cast<char>(code >= 'A' && code <= 'Z' ? code + ('a' - 'A') : code);
    }
    auto const* const found
        = std::find_if(std::begin(kFolds), std::end(kFolds), [code](Fold const& each) { return each.code == code; });
    return found == std::end(kFolds) ? '\0' : found->letter;
}

bool is_surely_nfc(std::string_view text)
{
    std::vector<uint8_t> const& table = kinds();
    for (size_t at = 0; at < text.size();)
    {
        if ((table[next_code(text, at)] & kUnsureKind) != 0)
        {
            return false;
        }
    }
    return true;
}

std::string nfc(std::string_view text)
{
    std::vector<uint32_t> codes;
    codes.reserve(text.size());
    for (size_t at = 0; at < text.size();)
    {
        append_decomposed(codes, next_code(text, at));
    }
    reorder(codes);
    compose(codes);
    std::string result;
    result.reserve(text.size());
    for (uint32_t const code : codes)
    {
        json::append_utf8(result, code);
    }
    return result;
}

size_t append_text(std::string& out, std::string_view bytes, bool keep_last)
{
    for (size_t at = 0; at < bytes.size();)
    {
        bool whole = false;
        size_t const length = character(bytes.substr(at), whole);
        std::string_view const found = whole ? bytes.substr(at, length) : kReplacement;
        if (keep_last && at + length == bytes.size() && found == kReplacement)
        {
            return at;
        }
        out += found;
        at += length;
    }
    return bytes.size();
}

} // namespace q2export::runtime::text
