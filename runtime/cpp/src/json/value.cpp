#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "json.h"

namespace q2export::runtime::json
{
namespace
{

constexpr size_t kShownBytes = 120;

void append_quoted(std::string& out, std::string_view text)
{
    constexpr char kDigits[] = "0123456789abcdef";
    out += '"';
    for (char const each : text)
    {
        auto const byte = static_cast<unsigned char>(each);
        if (byte == '"' || byte == '\\')
        {
            out += '\\';
            out += each;
        }
        else if (byte < 0x20 || byte == 0x7f)
        {
            out += "\\u00";
            out += {kDigits[byte >> 4], kDigits[byte & 15]};
        }
        else
        {
            out += each;
        }
    }
    out += '"';
}

// Stops soon after `limit` bytes.
void append(std::string& out, Value const& value, size_t limit)
{
    if (out.size() > limit)
    {
        return;
    }
    if (bool const* flag = value.flag())
    {
        out += *flag ? "true" : "false";
    }
    else if (int64_t const* integer = value.integer())
    {
        out += std::to_string(*integer);
    }
    else if (BigInteger const* big = value.big_integer())
    {
        out += big->digits;
    }
    else if (double const* real = value.real())
    {
        char text[32];
        out.append(text, std::to_chars(text, text + sizeof(text), *real).ptr);
    }
    else if (std::string const* string = value.string())
    {
        append_quoted(out, std::string_view(*string).substr(0, limit));
    }
    else if (Array const* array = value.array())
    {
        out += '[';
        for (size_t i = 0; i < array->size() && out.size() <= limit; ++i)
        {
            out += i == 0 ? "" : ", ";
            append(out, (*array)[i], limit);
        }
        out += ']';
    }
    else if (Object const* object = value.object())
    {
        out += '{';
        for (size_t i = 0; i < object->size() && out.size() <= limit; ++i)
        {
            out += i == 0 ? "" : ", ";
            append_quoted(out, (*object)[i].first);
            out += ": ";
            append(out, (*object)[i].second, limit);
        }
        out += '}';
    }
    else
    {
        out += "null";
    }
}

bool is_number(Value const& value, double& number)
{
    number = value.integer() != nullptr ? static_cast<double>(*value.integer())
        : value.real() != nullptr      ? *value.real()
                                       : NAN;
    return !std::isnan(number);
}

} // namespace

Value const* Value::find(std::string_view key) const
{
    Object const* const members = object();
    if (members == nullptr)
    {
        return nullptr;
    }
    auto const found = std::find_if(members->begin(), members->end(), [key](auto const& each) { return each.first == key; });
    return found == members->end() ? nullptr : &found->second;
}

std::string Value::shown() const
{
    std::string out;
    append(out, *this, kShownBytes);
    if (out.size() > kShownBytes)
    {
        size_t end = kShownBytes - 3;
        while ((static_cast<unsigned char>(out[end]) & 0xc0) == 0x80)
        {
            --end; // not within a character of UTF-8
        }
        out = out.substr(0, end) + "...";
    }
    return out;
}

std::string Value::text() const
{
    std::string out;
    append(out, *this, std::string::npos - 1);
    return out;
}

bool operator==(Value const& left, Value const& right)
{
    double a = 0;
    double b = 0;
    if (is_number(left, a) && is_number(right, b))
    {
        return left.integer() != nullptr && right.integer() != nullptr ? *left.integer() == *right.integer() : a == b;
    }
    if (left.data_.index() != right.data_.index())
    {
        return false;
    }
    if (Object const* members = left.object())
    {
        auto const same = [&right](auto const& each) {
            Value const* const other = right.find(each.first);
            return other != nullptr && *other == each.second;
        };
        return members->size() == right.object()->size() && std::all_of(members->begin(), members->end(), same);
    }
    if (BigInteger const* big = left.big_integer())
    {
        return big->digits == right.big_integer()->digits;
    }
    if (left.array() != nullptr)
    {
        return *left.array() == *right.array();
    }
    return left.is_null() || (left.flag() != nullptr && *left.flag() == *right.flag())
        || (left.string() != nullptr && *left.string() == *right.string());
}

void append_utf8(std::string& text, uint32_t code)
{
    auto const byte = [&text](uint32_t value) { text += static_cast<char>(value); };
    if (code < 0x80)
    {
        byte(code);
        return;
    }
    if (code < 0x800)
    {
        byte(0xc0 | (code >> 6));
    }
    else
    {
        if (code < 0x10000)
        {
            byte(0xe0 | (code >> 12));
        }
        else
        {
            byte(0xf0 | (code >> 18));
            byte(0x80 | ((code >> 12) & 0x3f));
        }
        byte(0x80 | ((code >> 6) & 0x3f));
    }
    byte(0x80 | (code & 0x3f));
}

bool is_utf8(std::string_view text, size_t& bad)
{
    auto const* const bytes = reinterpret_cast<unsigned char const*>(text.data());
    size_t const size = text.size();
    for (size_t at = 0; at < size;)
    {
        unsigned char const first = bytes[at];
        if (first < 0x80)
        {
            uint64_t eight = 0;
            for (++at; at + sizeof(eight) <= size; at += sizeof(eight))
            {
                std::memcpy(&eight, bytes + at, sizeof(eight));
                if ((eight & 0x8080808080808080) != 0)
                {
                    break;
                }
            }
            continue;
        }
        size_t const length = first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0;
        bool good = length != 0 && at + length <= size;
        for (size_t i = 1; good && i < length; ++i)
        {
            good = (bytes[at + i] & 0xc0) == 0x80;
        }
        // Overlong forms, surrogates and what lies beyond the last plane begin in a way of their own.
        good = good && !(first == 0xe0 && bytes[at + 1] < 0xa0) && !(first == 0xed && bytes[at + 1] > 0x9f)
            && !(first == 0xf0 && bytes[at + 1] < 0x90) && !(first == 0xf4 && bytes[at + 1] > 0x8f);
        if (!good)
        {
            bad = at;
            return false;
        }
        at += length;
    }
    return true;
}

} // namespace q2export::runtime::json
