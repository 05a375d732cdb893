// Rotary position embedding, half-split (Su et al. 2021; YaRN: Peng et al. 2023): channels i and i + head_dim / 2 turn
// by position * inv_freq[i].
#pragma once

#include <cstdint>

#include "common/vector.cuh"
#include "rotary/angle.cuh"

namespace q2export
{

// cos and sin for pair i, times the factor. The angle is float, as in the specification: position * inv_freq is rounded
// before it is reduced.
__device__ inline float2 turn_of(int64_t position, float const* inv_freq, int32_t i, float factor)
{
    float2 const turn = cosine_and_sine(static_cast<float>(position) * inv_freq[i]);
    return make_float2(turn.x * factor, turn.y * factor);
}

// The two channels of a pair, turned. fmaf is spelled out so that every kernel rounds alike.
__device__ inline float2 rotate(float first, float second, float2 turn)
{
    return make_float2(fmaf(first, turn.x, -(second * turn.y)), fmaf(second, turn.x, first * turn.y));
}

// Of the kernels that have such a table; they count vectors in 32 bits.
constexpr int32_t kMaxTablePairs = 128;
constexpr int32_t kMaxTableHeads = 1 << 20;

// The turns of one token's pairs, computed once by its block and read for every head. A vector has pairs
// chunk * kVector .. + kVector; its j-th lies at [j][chunk], so that threads of consecutive chunks hit different banks.
template <int kVector>
class TurnTable
{
public:
    __device__ TurnTable(float2* shared, int32_t half)
        : turns_(shared)
        , chunks_(half / kVector)
    {
    }

    // Called by all threads of the block, which then wait for each other.
    __device__ void fill(int64_t position, float const* inv_freq, float factor)
    {
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < chunks_ * kVector;
             i += static_cast<int32_t>(blockDim.x))
        {
            turns_[i % kVector * chunks_ + i / kVector] = turn_of(position, inv_freq, i, factor);
        }
        __syncthreads();
    }

    // Turns the pairs of a chunk: `first` holds their channels below head_dim / 2, `second` those above.
    template <typename Element>
    __device__ void rotate_vectors(uint4& first, uint4& second, int32_t chunk) const
    {
        static_assert(kVector == kVectorElements<Element>);
        float low[kVector];
        float high[kVector];
        widen<Element>(low, first);
        widen<Element>(high, second);
#pragma unroll
        for (int j = 0; j < kVector; ++j)
        {
            float2 const turned = rotate(low[j], high[j], turns_[j * chunks_ + chunk]);
            low[j] = turned.x;
            high[j] = turned.y;
        }
        first = narrow<Element>(low);
        second = narrow<Element>(high);
    }

private:
    float2* turns_;
    int32_t chunks_;
};

// Threads of a block that moves pairs of vectors, one each, up to the most that keeps several blocks on a
// multiprocessor.
constexpr int kMaxMoveThreads = 512;
constexpr int kMoveBlocks = 3;

inline int threads_for_moves(int32_t moves)
{
    int const whole_warps = (moves + 31) / 32 * 32;
    return whole_warps < kMaxMoveThreads ? whole_warps : kMaxMoveThreads;
}

} // namespace q2export
