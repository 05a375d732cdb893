#include "error.h"

namespace q2export::runtime
{
namespace
{

constexpr size_t kShownBytes = 120;

} // namespace

std::string shown(std::string_view text)
{
    constexpr char kDigits[] = "0123456789abcdef";
    std::string result = "'";
    for (char const each : text)
    {
        auto const byte = static_cast<unsigned char>(each);
        if (result.size() >= kShownBytes && (byte & 0xc0) != 0x80) // not within a character of UTF-8
        {
            return result + "...'";
        }
        if (byte < 0x20 || byte == 0x7f || byte == '\\' || byte == '\'')
        {
            result += {'\\', 'x', kDigits[byte >> 4], kDigits[byte & 15]};
            continue;
        }
        result += each;
    }
    return result + "'";
}

} // namespace q2export::runtime
