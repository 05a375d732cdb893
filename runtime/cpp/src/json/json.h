// JSON from files that may be damaged or hostile: UTF-8, no duplicate keys, no NaN, bounded integers and depth.
// Our own, for what the usual libraries let pass: duplicate keys, integers that do not fit, any depth.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace q2export::runtime::json
{

class Value;

// In the order of the file.
using Array = std::vector<Value>;
using Object = std::vector<std::pair<std::string, Value>>;

// An integer that int64_t does not hold.
struct BigInteger
{
    std::string digits;
};

class Value
{
public:
    Value() = default;

    template <typename T>
    explicit Value(T value)
        : data_(std::move(value))
    {
    }

    bool is_null() const
    {
        return std::holds_alternative<std::monostate>(data_);
    }

    // Null where the value is of another kind.
    bool const* flag() const
    {
        return std::get_if<bool>(&data_);
    }

    int64_t const* integer() const
    {
        return std::get_if<int64_t>(&data_);
    }

    BigInteger const* big_integer() const
    {
        return std::get_if<BigInteger>(&data_);
    }

    double const* real() const
    {
        return std::get_if<double>(&data_);
    }

    std::string const* string() const
    {
        return std::get_if<std::string>(&data_);
    }

    Array const* array() const
    {
        return std::get_if<Array>(&data_);
    }

    Object const* object() const
    {
        return std::get_if<Object>(&data_);
    }

    // Of an object: the value of a key, or null.
    Value const* find(std::string_view key) const;

    // For messages: as JSON, cut short.
    std::string shown() const;

    // As JSON in full.
    std::string text() const;

    // Numbers by value, 1 and 1.0 being equal; objects whatever the order of their keys.
    friend bool operator==(Value const& left, Value const& right);

private:
    std::variant<std::monostate, bool, int64_t, BigInteger, double, std::string, Array, Object> data_;
};

inline bool operator!=(Value const& left, Value const& right)
{
    return !(left == right);
}

// What is not JSON: the message says what, and at which byte.
struct ParseError
{
    std::string message;
};

// Parse one value. Throws ParseError.
Value parse(std::string_view text);

// Whether it is UTF-8: no surrogates, nothing overlong. If not, `bad` is the first byte that is not.
bool is_utf8(std::string_view text, size_t& bad);

// Append a code point as UTF-8.
void append_utf8(std::string& text, uint32_t code);

} // namespace q2export::runtime::json
