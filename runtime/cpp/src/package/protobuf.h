// Walking protobuf messages without their library. Source: https://protobuf.dev/programming-guides/encoding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace q2export::runtime::protobuf
{

constexpr uint64_t kVarint = 0;
constexpr uint64_t kFixed64 = 1;
constexpr uint64_t kBytes = 2; // strings, messages and packed numbers
constexpr uint64_t kFixed32 = 5;

constexpr uint64_t tag(uint64_t number, uint64_t wire = kBytes)
{
    return number << 3 | wire;
}

// Bytes that are no message; goes on after the name of the file.
struct Damage
{
    std::string message;
};

// The unsigned integer at `position`, which moves behind it. Throws Damage.
uint64_t varint(std::string_view data, size_t& position);

// One field of a message: a tag, and a number or a run of bytes.
struct Field
{
    uint64_t tag = 0;
    uint64_t number = 0;
    std::string_view bytes;
};

// The fields of a message, in order.
class Fields
{
public:
    explicit Fields(std::string_view message)
        : message_(message)
    {
    }

    // The next one; false at the end. Throws Damage: cut short, or of a wire type that is no longer used.
    bool next(Field& field);

private:
    std::string_view message_;
    size_t position_ = 0;
};

} // namespace q2export::runtime::protobuf
