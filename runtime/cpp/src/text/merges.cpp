#include "merges.h"

#include <algorithm>
#include <queue>
#include <tuple>

#include "text/hashing.h"

namespace q2export::runtime::text
{
namespace
{

constexpr size_t kShortBytes = 64;

} // namespace

Merges::Merges(size_t count)
    : seed_(random_seed())
    , shift_(63)
    , slots_(2)
{
    while (slots_.size() < count + count / 2)
    {
        slots_.resize(slots_.size() * 2);
        --shift_;
    }
}

size_t Merges::place_of(uint32_t left, uint32_t right) const
{
    uint64_t const key = (static_cast<uint64_t>(left) << 32 | right) ^ seed_;
    size_t at = ((key ^ key >> 29) * kMultiplier) >> shift_;
    while (slots_[at].rank != kNoRank && (slots_[at].left != left || slots_[at].right != right))
    {
        at = (at + 1) & (slots_.size() - 1);
    }
    return at;
}

void Merges::add(uint32_t left, uint32_t right, uint32_t rank, uint32_t merged)
{
    slots_[place_of(left, right)] = {left, right, rank, merged};
}

void Merges::encode(std::string_view word, std::vector<int64_t>& token_ids) const
{
    word.size() <= kShortBytes ? encode_short(word, token_ids) : encode_long(word, token_ids);
}

// All ranks in a row, searched anew for each merge: faster than a queue while they are few.
void Merges::encode_short(std::string_view word, std::vector<int64_t>& token_ids) const
{
    uint32_t tokens[kShortBytes];
    Slot const* pairs[kShortBytes]; // of each token and the next
    size_t count = word.size();
    for (size_t i = 0; i < count; ++i)
    {
        tokens[i] = bytes_[static_cast<unsigned char>(word[i])];
    }
    for (size_t i = 0; i + 1 < count; ++i)
    {
        pairs[i] = &find(tokens[i], tokens[i + 1]);
    }
    while (count > 1)
    {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; ++i)
        {
            best = pairs[i]->rank < pairs[best]->rank ? i : best;
        }
        if (pairs[best]->rank == kNoRank)
        {
            break;
        }
        tokens[best] = pairs[best]->merged;
        std::copy(tokens + best + 2, tokens + count, tokens + best + 1);
        if (best + 2 < count)
        {
            std::copy(pairs + best + 2, pairs + count - 1, pairs + best + 1);
        }
        --count;
        if (best > 0)
        {
            pairs[best - 1] = &find(tokens[best - 1], tokens[best]);
        }
        if (best + 1 < count)
        {
            pairs[best] = &find(tokens[best], tokens[best + 1]);
        }
    }
    token_ids.insert(token_ids.end(), tokens, tokens + count);
}

void Merges::encode_long(std::string_view word, std::vector<int64_t>& token_ids) const
{
    constexpr size_t kNone = SIZE_MAX;
    struct Symbol
    {
        uint32_t token;
        bool gone; // merged into the one before
        size_t previous;
        size_t next;
    };
    struct Candidate
    {
        uint32_t rank;
        size_t place;
        uint32_t left;
        uint32_t right;
        uint32_t merged;

        bool operator<(Candidate const& other) const // the top of the queue is the largest
        {
            return std::tie(rank, place) > std::tie(other.rank, other.place);
        }
    };
    size_t const size = word.size();
    std::vector<Symbol> symbols(size);
    std::priority_queue<Candidate> queue;
    auto const consider = [&](size_t place) {
        if (place == kNone || symbols[place].next == kNone)
        {
            return;
        }
        Slot const& slot = find(symbols[place].token, symbols[symbols[place].next].token);
        if (slot.rank != kNoRank)
        {
            queue.push({slot.rank, place, slot.left, slot.right, slot.merged});
        }
    };
    for (size_t i = 0; i < size; ++i)
    {
        symbols[i] = {bytes_[static_cast<unsigned char>(word[i])], false, i == 0 ? kNone : i - 1, i + 1 == size ? kNone : i + 1};
    }
    for (size_t i = 0; i < size; ++i)
    {
        consider(i);
    }
    while (!queue.empty())
    {
        Candidate const best = queue.top();
        queue.pop();
        Symbol& left = symbols[best.place];
        if (left.gone || left.next == kNone || left.token != best.left || symbols[left.next].token != best.right)
        {
            continue; // one of the two was merged since
        }
        symbols[left.next].gone = true;
        left.token = best.merged;
        left.next = symbols[left.next].next;
        if (left.next != kNone)
        {
            symbols[left.next].previous = best.place;
        }
        consider(left.previous);
        consider(best.place);
    }
    for (Symbol const& each : symbols)
    {
        if (!each.gone)
        {
            token_ids.push_back(each.token);
        }
    }
}

} // namespace q2export::runtime::text
