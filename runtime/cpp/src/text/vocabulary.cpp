#include "vocabulary.h"

#include <array>
#include <cstring>

#include "json/json.h"
#include "text/hashing.h"
#include "text/unicode.h"

namespace q2export::runtime::text
{
namespace
{

constexpr uint32_t kAlphabet = 0x144; // one more than its largest character

// Printable Latin-1 stands for itself.
bool is_printable(uint32_t byte)
{
    return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

// Characters by byte, and bytes by character; the other bytes, in order, are the characters from U+0100 on
// (Radford et al. 2019, bytes_to_unicode).
struct Alphabet
{
    std::array<uint32_t, 256> characters{};
    std::array<int16_t, kAlphabet> bytes{};

    Alphabet()
    {
        bytes.fill(-1);
        uint32_t next = 0x100;
        for (uint32_t byte = 0; byte < 256; ++byte)
        {
            characters[byte] = is_printable(byte) ? byte : next++;
            bytes[characters[byte]] = static_cast<int16_t>(byte);
        }
    }
};

Alphabet const& alphabet()
{
    static Alphabet const made;
    return made;
}

// Up to eight bytes as a number.
uint64_t head_of(std::string_view text)
{
    uint64_t head = 0;
    if (text.size() >= sizeof(head))
    {
        std::memcpy(&head, text.data(), sizeof(head));
        return head;
    }
    for (size_t i = 0; i < text.size(); ++i)
    {
        head |= static_cast<uint64_t>(static_cast<unsigned char>(text[i])) << (8 * i);
    }
    return head;
}

} // namespace

std::string written_byte(unsigned char byte)
{
    std::string result;
    json::append_utf8(result, alphabet().characters[byte]);
    return result;
}

void Vocabulary::add(uint32_t id, std::string_view written)
{
    size_t const start = block_.size();
    for (size_t at = 0; at < written.size();)
    {
        uint32_t const code = next_code(written, at);
        int const byte = code < kAlphabet ? alphabet().bytes[code] : -1;
        if (byte < 0)
        {
            block_.resize(start);
            block_ += written;
            break;
        }
        block_ += static_cast<char>(byte);
    }
    if (id >= spans_.size())
    {
        spans_.resize(id + size_t{1});
    }
    spans_[id] = {static_cast<uint32_t>(start), static_cast<uint32_t>(block_.size() - start)};
}

TokenIds::TokenIds(size_t count)
    : seed_(random_seed())
    , slots_(16)
{
    while (slots_.size() < count + count / 2)
    {
        slots_.resize(slots_.size() * 2);
    }
}

uint64_t TokenIds::hash_of(std::string_view written) const
{
    uint64_t hash = seed_ ^ written.size();
    for (size_t at = 0; at < written.size(); at += sizeof(hash))
    {
        hash = (hash ^ head_of(written.substr(at))) * kMultiplier;
        hash ^= hash >> 32;
    }
    return hash * kMultiplier >> 32;
}

size_t TokenIds::place_of(std::string_view written) const
{
    uint64_t const head = head_of(written);
    size_t at = hash_of(written) & (slots_.size() - 1);
    while (true)
    {
        Slot const& slot = slots_[at];
        if (slot.written == nullptr
            || (slot.head == head && slot.size == written.size()
                && (slot.size <= sizeof(head) || std::memcmp(slot.written, written.data(), slot.size) == 0)))
        {
            return at;
        }
        at = (at + 1) & (slots_.size() - 1);
    }
}

bool TokenIds::add(std::string_view written, uint32_t id)
{
    if (count_ + count_ / 2 >= slots_.size())
    {
        std::vector<Slot> const old = std::move(slots_);
        slots_.assign(old.size() * 2, Slot());
        for (Slot const& each : old)
        {
            if (each.written != nullptr)
            {
                slots_[place_of({each.written, each.size})] = each;
            }
        }
    }
    Slot& slot = slots_[place_of(written)];
    if (slot.written != nullptr)
    {
        return false;
    }
    slot = {written.data(), head_of(written), static_cast<uint32_t>(written.size()), id};
    ++count_;
    return true;
}

uint32_t const* TokenIds::find(std::string_view written) const
{
    Slot const& slot = slots_[place_of(written)];
    return slot.written == nullptr ? nullptr : &slot.id;
}

} // namespace q2export::runtime::text
