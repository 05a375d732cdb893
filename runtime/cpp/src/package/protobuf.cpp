#include "protobuf.h"

namespace q2export::runtime::protobuf
{

uint64_t varint(std::string_view data, size_t& position)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7)
    {
        if (position >= data.size())
        {
            throw Damage{"is damaged: an integer goes beyond the end of its message"};
        }
        auto const byte = static_cast<unsigned char>(data[position++]);
        value |= shift < 64 ? static_cast<uint64_t>(byte & 127) << shift : 0;
        if (byte < 128)
        {
            return value;
        }
    }
    throw Damage{"is damaged: an integer of more than 64 bits"};
}

bool Fields::next(Field& field)
{
    if (position_ >= message_.size())
    {
        return false;
    }
    field.tag = varint(message_, position_);
    field.bytes = {};
    uint64_t const wire = field.tag & 7;
    if (wire == kVarint)
    {
        field.number = varint(message_, position_);
        return true;
    }
    uint64_t size = wire == kFixed64 ? 8 : 4;
    if (wire == kBytes)
    {
        size = varint(message_, position_);
    }
    else if (wire != kFixed64 && wire != kFixed32)
    {
        throw Damage{"is damaged: a field has wire type " + std::to_string(wire)};
    }
    if (size > message_.size() - position_)
    {
        throw Damage{"is damaged: a field goes beyond the end of its message"};
    }
    field.bytes = message_.substr(position_, size);
    position_ += size;
    return true;
}

} // namespace q2export::runtime::protobuf
