// The random numbers of numpy.random.default_rng(seed), bit for bit.
//
// PCG XSL RR 128/64: M. O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms for Random
// Number Generation", HMC-CS-2014-0905. Seeding: the same author's seed_seq, as NumPy's SeedSequence has it
// (https://numpy.org/doc/stable/reference/random/bit_generators/generated/numpy.random.SeedSequence.html).
#pragma once

#include <cstdint>
#include <optional>

namespace q2export::runtime
{

class Random
{
public:
    // Without a seed, entropy of the system.
    explicit Random(std::optional<uint64_t> seed);

    // Uniform in [0, 1), 53 bits.
    double next();

private:
    using uint128 = unsigned __int128;

    void advance();

    uint128 state_ = 0;
    uint128 increment_ = 0;
};

} // namespace q2export::runtime
