// Byte-pair encoding (Sennrich et al. 2016): the merges of a vocabulary, applied to one word.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace q2export::runtime::text
{

class Merges
{
public:
    // Room for `count` merges.
    explicit Merges(size_t count = 0);

    // Two tokens become `merged`; the lowest rank goes first. Of a pair that is given twice the last counts.
    void add(uint32_t left, uint32_t right, uint32_t rank, uint32_t merged);

    // The token of a single byte.
    void set_byte(unsigned char byte, uint32_t token)
    {
        bytes_[byte] = token;
    }

    // Append the tokens of a word. As long as two neighbours can be merged, those of the lowest rank are, the leftmost
    // of several. Time grows with n log n.
    void encode(std::string_view word, std::vector<int64_t>& token_ids) const;

private:
    struct Slot
    {
        uint32_t left = 0;
        uint32_t right = 0;
        uint32_t rank = kNoRank;
        uint32_t merged = 0;
    };

    static constexpr uint32_t kNoRank = UINT32_MAX;

    // Of the pair, or where it would be.
    size_t place_of(uint32_t left, uint32_t right) const;

    Slot const& find(uint32_t left, uint32_t right) const
    {
        return slots_[place_of(left, right)];
    }

    void encode_short(std::string_view word, std::vector<int64_t>& token_ids) const;
    void encode_long(std::string_view word, std::vector<int64_t>& token_ids) const;

    uint32_t bytes_[256] = {};
    uint64_t seed_;
    int shift_;
    std::vector<Slot> slots_; // a power of two of them, a third of them free at least
};

} // namespace q2export::runtime::text
