// Characters as Hugging Face's tokenizers sees them: its classes, its NFC, its reading of damaged UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace q2export::runtime::text
{

enum : uint8_t
{
    kLetter = 1,     // \p{L}
    kNumber = 2,     // \p{N}
    kSpace = 4,      // \s
    kUnsureKind = 8, // a text without any is in NFC
};

// What of the above a code point is.
uint8_t kinds_of(uint32_t code);

// The ASCII letter of a contraction ('s, 'll) that a code point is, whatever its case; else 0.
char contraction_letter(uint32_t code);

// The character at `at` of valid UTF-8, which is not its end; `at` becomes the place after it.
inline uint32_t next_code(std::string_view text, size_t& at)
{
    auto const byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<unsigned char>(text[at + i])); };
    uint32_t const first = byte(0);
    uint32_t code = first;
    size_t length = 1;
    if (first >= 0xf0)
    {
        code = (first & 7) << 18 | (byte(1) & 63) << 12 | (byte(2) & 63) << 6 | (byte(3) & 63);
        length = 4;
    }
    else if (first >= 0xe0)
    {
        code = (first & 15) << 12 | (byte(1) & 63) << 6 | (byte(2) & 63);
        length = 3;
    }
    else if (first >= 0x80)
    {
        code = (first & 31) << 6 | (byte(1) & 63);
        length = 2;
    }
    at += length;
    return code;
}

// Whether valid UTF-8 is in NFC for certain, without a closer look.
bool is_surely_nfc(std::string_view text);

// NFC of valid UTF-8 (Unicode Standard Annex 15).
std::string nfc(std::string_view text);

// Append bytes as text: each longest beginning of a character that does not go on becomes one U+FFFD (Unicode 3.9,
// "substitution of maximal subparts"). With `keep_last`, a U+FFFD at the end, or what became one, is not appended.
// Returns how many bytes were used.
size_t append_text(std::string& out, std::string_view bytes, bool keep_last = false);

} // namespace q2export::runtime::text
