#include "random.h"

#include <array>
#include <random>

namespace q2export::runtime
{
namespace
{

constexpr size_t kPool = 4; // words
constexpr uint32_t kInitA = 0x43b0d7e5, kMultiplierA = 0x931e8875;
constexpr uint32_t kInitB = 0x8b51f9dd, kMultiplierB = 0x58f38ded;
constexpr uint32_t kMixLeft = 0xca01f9dd, kMixRight = 0x4973f715;

// Turns each word that comes into another one, no two alike.
class Hash
{
public:
    Hash(uint32_t start, uint32_t multiplier)
        : constant_(start)
        , multiplier_(multiplier)
    {
    }

    uint32_t operator()(uint32_t value)
    {
        value ^= constant_;
        constant_ *= multiplier_;
        value *= constant_;
        return value ^ (value >> 16);
    }

private:
    uint32_t constant_;
    uint32_t multiplier_;
};

uint32_t mixed(uint32_t left, uint32_t right)
{
    uint32_t const result = kMixLeft * left - kMixRight * right;
    return result ^ (result >> 16);
}

// 256 bits from the words of a seed, all at once where there are no more than the pool has room for.
std::array<uint64_t, 4> seed_state(std::array<uint32_t, kPool> const& entropy)
{
    std::array<uint32_t, kPool> pool{};
    Hash hash(kInitA, kMultiplierA);
    for (size_t i = 0; i < kPool; ++i)
    {
        pool[i] = hash(entropy[i]);
    }
    for (size_t source = 0; source < kPool; ++source)
    {
        for (size_t target = 0; target < kPool; ++target)
        {
            if (source != target)
            {
                pool[target] = mixed(pool[target], hash(pool[source]));
            }
        }
    }
    Hash out(kInitB, kMultiplierB);
    std::array<uint64_t, 4> state{};
    for (size_t i = 0; i < 2 * state.size(); ++i)
    {
        state[i / 2] |= static_cast<uint64_t>(out(pool[i % kPool])) << (32 * (i % 2));
    }
    return state;
}

} // namespace

Random::Random(std::optional<uint64_t> seed)
{
    std::array<uint32_t, kPool> entropy{};
    if (seed)
    {
        entropy = {static_cast<uint32_t>(*seed), static_cast<uint32_t>(*seed >> 32), 0, 0};
    }
    else
    {
        std::random_device device;
        for (uint32_t& word : entropy)
        {
            word = device();
        }
    }
    std::array<uint64_t, 4> const words = seed_state(entropy);
    increment_ = (static_cast<uint128>(words[2]) << 64 | words[3]) << 1 | 1;
    advance();
    state_ += static_cast<uint128>(words[0]) << 64 | words[1];
    advance();
}

void Random::advance()
{
    constexpr uint128 kMultiplier = static_cast<uint128>(0x2360ed051fc65da4) << 64 | 0x4385df649fccf645;
    state_ = state_ * kMultiplier + increment_;
}

double Random::next()
{
    advance();
    auto const folded = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
    auto const turn = static_cast<unsigned int>(state_ >> 122);
    uint64_t const bits = folded >> turn | folded << (-turn & 63);
    return static_cast<double>(bits >> 11) * 0x1p-53;
}

} // namespace q2export::runtime
