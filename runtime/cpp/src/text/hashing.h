// What hash tables over tokens of a stranger's file share.
#pragma once

#include <cstdint>
#include <random>

namespace q2export::runtime::text
{

constexpr uint64_t kMultiplier = 0x9e3779b97f4a7c15; // 2**64 over the golden ratio: spreads keys (Knuth 6.4)

// Of one table: nobody can choose keys that collide.
inline uint64_t random_seed()
{
    return static_cast<uint64_t>(std::random_device()()) << 32 | 1;
}

} // namespace q2export::runtime::text
