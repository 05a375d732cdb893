// The tokens of a vocabulary: their bytes by id, in one block.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace q2export::runtime::text
{

class Vocabulary
{
public:
    // A token as tokenizer.json writes it: in GPT-2's byte-level alphabet, "Ġa" for " a". What has a character that is
    // not of that alphabet stands for its UTF-8. Ids may come in any order; of one that comes twice the last counts.
    void add(uint32_t id, std::string_view written);

    bool has(int64_t id) const
    {
        return id >= 0 && static_cast<uint64_t>(id) < spans_.size() && spans_[static_cast<size_t>(id)].size != kAbsent;
    }

    // None for an id that there is not.
    std::string_view bytes(int64_t id) const
    {
        if (!has(id))
        {
            return {};
        }
        Span const& span = spans_[static_cast<size_t>(id)];
        return {block_.data() + span.start, span.size};
    }

    // One more than the largest id.
    size_t size() const
    {
        return spans_.size();
    }

private:
    struct Span
    {
        uint32_t start = 0;
        uint32_t size = kAbsent;
    };

    static constexpr uint32_t kAbsent = UINT32_MAX;

    std::string block_;
    std::vector<Span> spans_; // by id
};

// A byte as the byte-level alphabet writes it, in UTF-8.
std::string written_byte(unsigned char byte);

// Ids by the text that tokenizer.json writes, while it is read. The texts live elsewhere.
class TokenIds
{
public:
    explicit TokenIds(size_t count);

    // False where the text is there already.
    bool add(std::string_view written, uint32_t id);

    // Null where it is not there.
    uint32_t const* find(std::string_view written) const;

    // Bring what a text's look-up reads into the cache.
    void prefetch(std::string_view written) const
    {
        __builtin_prefetch(&slots_[hash_of(written) & (slots_.size() - 1)]);
    }

private:
    // Short texts, which are most, are compared without reading them.
    struct Slot
    {
        char const* written = nullptr;
        uint64_t head = 0; // the first bytes
        uint32_t size = 0;
        uint32_t id = 0;
    };

    uint64_t hash_of(std::string_view written) const;
    size_t place_of(std::string_view written) const;

    uint64_t seed_; // so that nobody can choose texts that collide
    size_t count_ = 0;
    std::vector<Slot> slots_; // a power of two of them, a third of them free at least
};

} // namespace q2export::runtime::text
