#include "reader.h"

#include <charconv>
#include <clocale>
#include <cmath>
#include <cstdlib>
#include <locale.h>
#include <unordered_set>

namespace q2export::runtime::json
{
namespace
{

constexpr size_t kMaxDepth = 500;
constexpr size_t kMaxIntegerDigits = 20; // 2**64 has 20
constexpr size_t kFewKeys = 16;          // compared one by one

// Of a number that is in the range of no int64_t or double; the same in every locale.
double real_of(std::string const& text)
{
    static locale_t const c_locale = newlocale(LC_ALL_MASK, "C", nullptr);
    return strtod_l(text.c_str(), nullptr, c_locale);
}

} // namespace

Reader::Reader(std::string_view text)
    : text_(text)
{
    size_t bad = 0;
    if (!is_utf8(text, bad))
    {
        throw ParseError{"expected UTF-8 text, found byte " + std::to_string(bad) + " that is not"};
    }
}

void Reader::finish()
{
    skip_space();
    if (at_ != text_.size())
    {
        refuse("there is more after the end");
    }
}

void Reader::refuse(std::string const& what) const
{
    throw ParseError{what + " (byte " + std::to_string(at_) + ")"};
}

void Reader::skip_space()
{
    while (at_ < text_.size()
        && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
    {
        ++at_;
    }
}

char Reader::next()
{
    skip_space();
    return peek();
}

char Reader::peek() const
{
    return at_ < text_.size() ? text_[at_] : '\0';
}

void Reader::expect(char wanted)
{
    if (at_ >= text_.size() || text_[at_] != wanted)
    {
        refuse(std::string("expected ") + wanted);
    }
    ++at_;
}

bool Reader::take(std::string_view word)
{
    if (text_.substr(at_, word.size()) != word)
    {
        return false;
    }
    at_ += word.size();
    return true;
}

Value Reader::value(size_t depth)
{
    if (depth > kMaxDepth)
    {
        refuse("nested too deeply");
    }
    skip_space();
    switch (peek())
    {
    case '{': return Value(object(depth));
    case '[': return Value(array(depth));
    case '"':
    {
        std::string scratch;
        return Value(std::string(string(scratch)));
    }
    case 't':
    case 'f':
    case 'n': return word();
    default: return number();
    }
}

Value Reader::word()
{
    if (take("true"))
    {
        return Value(true);
    }
    if (take("false"))
    {
        return Value(false);
    }
    if (take("null"))
    {
        return Value();
    }
    refuse("expected a value");
}

Object Reader::object(size_t depth)
{
    Object result;
    std::unordered_set<std::string> keys;
    members([&](std::string_view key) {
        std::string name(key);
        check_new(result, keys, name);
        Value item = value(depth + 1);
        result.emplace_back(std::move(name), std::move(item));
    });
    return result;
}

void Reader::check_new(Object const& object, std::unordered_set<std::string>& keys, std::string const& key) const
{
    bool found = false;
    if (object.size() < kFewKeys)
    {
        for (auto const& each : object)
        {
            found = found || each.first == key;
        }
    }
    else
    {
        if (keys.empty())
        {
            for (auto const& each : object)
            {
                keys.insert(each.first);
            }
        }
        found = !keys.insert(key).second;
    }
    if (found)
    {
        refuse("the key \"" + key.substr(0, 100) + "\" is given twice");
    }
}

Array Reader::array(size_t depth)
{
    Array result;
    elements([&] { result.push_back(value(depth + 1)); });
    return result;
}

std::string_view Reader::string(std::string& scratch)
{
    expect('"');
    scratch.clear();
    while (true)
    {
        size_t const start = at_;
        while (at_ < text_.size() && text_[at_] != '"' && text_[at_] != '\\'
            && static_cast<unsigned char>(text_[at_]) >= 0x20)
        {
            ++at_;
        }
        std::string_view const piece = text_.substr(start, at_ - start);
        if (at_ >= text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20)
        {
            refuse("a string does not end");
        }
        if (text_[at_++] == '"')
        {
            return scratch.empty() ? piece : std::string_view(scratch.append(piece));
        }
        scratch.append(piece);
        escape(scratch);
    }
}

void Reader::escape(std::string& result)
{
    constexpr std::string_view kNames = "\"\\/bfnrt";
    constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
    char const name = peek();
    ++at_;
    size_t const place = kNames.find(name);
    if (name != '\0' && place != std::string_view::npos)
    {
        result += kMeanings[place];
        return;
    }
    if (name != 'u')
    {
        refuse("an escape that JSON does not have");
    }
    uint32_t code = unit();
    if (code >= 0xd800 && code < 0xdc00 && take("\\u"))
    {
        uint32_t const low = unit();
        if (low < 0xdc00 || low > 0xdfff)
        {
            refuse("half a surrogate pair");
        }
        code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    if (code >= 0xd800 && code <= 0xdfff)
    {
        refuse("half a surrogate pair");
    }
    append_utf8(result, code);
}

uint32_t Reader::unit()
{
    uint32_t code = 0;
    std::string_view const digits = text_.substr(at_, 4);
    auto const [end, problem] = std::from_chars(digits.data(), digits.data() + digits.size(), code, 16);
    if (digits.size() < 4 || problem != std::errc() || end != digits.data() + 4)
    {
        refuse("\\u needs four hexadecimal digits");
    }
    at_ += 4;
    return code;
}

size_t Reader::digits()
{
    size_t const start = at_;
    while (peek() >= '0' && peek() <= '9')
    {
        ++at_;
    }
    return at_ - start;
}

Value Reader::number()
{
    size_t const start = at_;
    at_ += peek() == '-' ? 1 : 0;
    bool const leading_zero = peek() == '0';
    size_t const integral = digits();
    if (integral == 0 || (leading_zero && integral > 1))
    {
        at_ = start;
        refuse("expected a value");
    }
    bool is_integer = true;
    if (peek() == '.')
    {
        is_integer = false;
        ++at_;
        if (digits() == 0)
        {
            refuse("expected a digit");
        }
    }
    if (peek() == 'e' || peek() == 'E')
    {
        is_integer = false;
        ++at_;
        at_ += peek() == '+' || peek() == '-' ? 1 : 0;
        if (digits() == 0)
        {
            refuse("expected a digit");
        }
    }
    return is_integer ? integer(start, integral) : real(start);
}

Value Reader::integer(size_t start, size_t digits) const
{
    if (digits > kMaxIntegerDigits)
    {
        refuse("an integer of " + std::to_string(digits) + " digits");
    }
    int64_t result = 0;
    auto const [end, problem] = std::from_chars(text_.data() + start, text_.data() + at_, result);
    if (problem == std::errc() && end == text_.data() + at_)
    {
        return Value(result);
    }
    return Value(BigInteger{std::string(text_.substr(start, at_ - start))});
}

Value Reader::real(size_t start) const
{
    double result = 0;
    auto const [end, problem] = std::from_chars(text_.data() + start, text_.data() + at_, result);
    if (problem == std::errc() && end == text_.data() + at_)
    {
        return Value(result);
    }
    return Value(real_of(std::string(text_.substr(start, at_ - start)))); // too large or too small
}

Value parse(std::string_view text)
{
    Reader reader(text);
    Value result = reader.value(0);
    reader.finish();
    return result;
}

} // namespace q2export::runtime::json
