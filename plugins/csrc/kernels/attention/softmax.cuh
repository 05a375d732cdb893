// Softmax over tiles of scores (Milakov and Gimelshein 2018) on tensor-core accumulators.
//
// Of a 16 x 8 accumulator a lane holds rows lane / 4 (elements 0, 1) and lane / 4 + 8 (elements 2, 3), columns
// 2 * (lane % 4) and the next. "half" is 0 for the former row, 1 for the latter.
#pragma once

#include <cmath>

#include "attention/tile.cuh"

namespace q2export
{

// Weights may be relative to less than the maximum, and are at most 2 ** kTolerated.
template <int kFragments, int kTolerated = 8>
struct OnlineSoftmax
{
    float scale; // of the scores, times log2(e), positive: all exponentials are powers of two
    float maximum[kFragments][2]; // before the scale; what the weights so far are relative to
    float sum[kFragments][2]; // of the weights, this lane's columns only

    __device__ explicit OnlineSoftmax(float scale_)
        : scale(scale_)
    {
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
        {
            maximum[f][0] = maximum[f][1] = -INFINITY;
            sum[f][0] = sum[f][1] = 0.0F;
        }
    }

    // Raises the maxima to the scores of one more tile, if one has outgrown its own by too much. Then, the same for the
    // whole warp, what is relative to the old ones has to be multiplied by `factor`; the sums have been.
    //
    // As long as weights stay well inside half precision, most tiles need no rescaling, which costs as much as the
    // exponentials, where some is tolerated.
    template <int kColumns>
    __device__ bool raise(float (&factor)[kFragments][2], float const (&scores)[kFragments][kColumns][4])
    {
        float tile[kFragments][2];
        bool outgrown = false;
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
        {
#pragma unroll
            for (int half = 0; half < 2; ++half)
            {
                float value = fmaxf(scores[f][0][2 * half], scores[f][0][2 * half + 1]);
#pragma unroll
                for (int n = 1; n < kColumns; ++n)
                {
                    value = fmaxf(value, fmaxf(scores[f][n][2 * half], scores[f][n][2 * half + 1]));
                }
                value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, 1));
                tile[f][half] = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, 2));
                outgrown |= (tile[f][half] - maximum[f][half]) * scale > float{kTolerated}; // not if both are -inf
            }
        }
        if (!__any_sync(kWholeWarp, outgrown))
        {
            return false;
        }
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
        {
#pragma unroll
            for (int half = 0; half < 2; ++half)
            {
                float const larger = fmaxf(maximum[f][half], tile[f][half]);
                // While all scores are -inf there is nothing to rescale, and -inf - -inf would be NaN.
                factor[f][half] = larger == maximum[f][half] ? 1.0F : exp2_fast((maximum[f][half] - larger) * scale);
                maximum[f][half] = larger;
                sum[f][half] *= factor[f][half];
            }
        }
        return true;
    }

    // Turns scores into weights, rounded to Element and packed as A operands. The sums are of the weights before that.
    template <typename Element, int kColumns>
    __device__ void exponentiate(
        uint32_t (&weights)[kFragments][kColumns / 2][4], float const (&scores)[kFragments][kColumns][4])
    {
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
        {
            float const subtracted[2] = {offset(f, 0), offset(f, 1)};
#pragma unroll
            for (int n = 0; n < kColumns; ++n)
            {
#pragma unroll
                for (int half = 0; half < 2; ++half)
                {
                    float const low = exp2_fast(fmaf(scores[f][n][2 * half], scale, -subtracted[half]));
                    float const high = exp2_fast(fmaf(scores[f][n][2 * half + 1], scale, -subtracted[half]));
                    sum[f][half] += low + high;
                    weights[f][n / 2][n % 2 * 2 + half] = pack2<Element>(low, high);
                }
            }
        }
    }

    // What a row's output has to be multiplied with at the end.
    __device__ float normaliser(int f, int half) const
    {
        return 1.0F / sum_of_row(sum[f][half]);
    }

private:
    // A row without a key so far has -inf for its scores, and weights of 0.
    __device__ float offset(int f, int half) const
    {
        return maximum[f][half] == -INFINITY ? 0.0F : maximum[f][half] * scale;
    }
};

template <int kFragments, int kChannels>
__device__ inline void rescale_rows(
    float (&output)[kFragments][kChannels][4], float const (&factor)[kFragments][2])
{
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
    {
#pragma unroll
        for (int n = 0; n < kChannels; ++n)
        {
#pragma unroll
            for (int i = 0; i < 4; ++i)
            {
                output[f][n][i] *= factor[f][i / 2];
            }
        }
    }
}

} // namespace q2export
