// What the tensor-core attention kernels share: tiles of keys and values in shared memory, and 16 query rows in the
// registers of a warp.
//
// The scheme is FlashAttention-2's (Dao 2023, section 3.3): the query rows are A operands; the scores of a tile of keys
// leave the tensor cores as accumulators; their softmax, rounded and packed in pairs, is in the layout of an A operand
// again, so that it multiplies the values without leaving the registers. With lane = 4 * group + quarter, a lane holds
// elements of rows `group` and `group + 8` alone, called its rows 0 and 1 below.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/ptx.cuh"

namespace q2export
{

constexpr int kWarpSize = 32;
constexpr unsigned kWholeWarp = 0xFFFFFFFFU;
constexpr int kFragmentRows = 16; // query rows of a warp
constexpr int kChunkBytes = 16; // of one asynchronous copy, and of a row of an 8x8 matrix
constexpr int kChunkElements = 8; // the element types are 16 bits wide

__device__ inline int lane_index()
{
    return static_cast<int>(threadIdx.x) % kWarpSize;
}

template <int kHeadDim, int kRows>
constexpr int kTileBytes = kRows * kHeadDim * 2;

// Byte offset of a chunk in a tile of rows. Chunks are permuted within each row, so that the eight rows of an 8x8
// matrix, which a warp reads at once, lie in eight different groups of banks.
template <int kHeadDim>
__device__ inline int tile_offset(int row, int chunk)
{
    static_assert(kHeadDim % 64 == 0, "a permutation of eight chunks needs rows of eight");
    return row * kHeadDim * 2 + (chunk ^ (row % 8)) * kChunkBytes;
}

// Starts copying rows first .. first + kRows of `matrix` [.., kHeadDim] to a tile; called by kThreads threads, of which
// this is number `thread`. Rows outside begin .. end are not read and become zero, so that no product with them is NaN.
template <int kHeadDim, int kRows, int kThreads, typename Element>
__device__ inline void copy_tile(
    unsigned char* tile, Element const* matrix, int32_t first, int32_t begin, int32_t end, int thread)
{
    constexpr int kChunks = kHeadDim / kChunkElements;
    constexpr int kStep = kThreads / kChunks; // rows apart are a thread's copies
    static_assert(kRows % kStep == 0 && (kStep & (kStep - 1)) == 0);
    int const row = thread / kChunks;
    int const chunk = thread % kChunks;
    int32_t const position = first + row;
    Element const* const source = matrix + static_cast<int64_t>(position) * kHeadDim + chunk * kChunkElements;
#pragma unroll
    for (int i = 0; i < kRows; i += kStep)
    {
        // row < kStep, a power of two: row and i have no bit in common, so that tile_offset(row + i, chunk) takes this
        // form, in which all but `row` is known when it is compiled.
        int const offset = tile_offset<kHeadDim>(row, chunk ^ (i % 8)) + i * kHeadDim * 2;
        bool const is_there = i >= begin - position && i < end - position;
        copy_async_16(tile + offset, source + i * kHeadDim, is_there);
    }
}

// Loads 16 query rows as A operands, one for each 16 channels. The lane's two rows lie in global memory, 4-byte
// aligned; a null row is zero.
template <int kHeadDim, typename Element>
__device__ inline void load_query(uint32_t (&query)[kHeadDim / 16][4], Element const* row_0, Element const* row_1)
{
    int const pair = 2 * (lane_index() % 4);
    Element const* const rows[2] = {row_0, row_1};
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            Element const* const row = rows[i % 2];
            Element const* const source = row + k * 16 + i / 2 * 8 + pair;
            query[k][i] = row == nullptr ? 0U : *reinterpret_cast<uint32_t const*>(source);
        }
    }
}

// scores = query keys^T, unscaled, for the kKeys rows of a tile. In scores[n], elements 0 and 1 are of the lane's
// row 0, elements 2 and 3 of its row 1; the keys are key_of(n, 0) and the next.
template <typename Element, int kHeadDim, int kKeys>
__device__ inline void multiply_keys(
    float (&scores)[kKeys / 8][4], uint32_t const (&query)[kHeadDim / 16][4], unsigned char const* tile)
{
    int const lane = lane_index();
    int const row = lane / 16 * 8 + lane % 8; // matrices: keys 0-7 with the two halves of 16 channels, then keys 8-15
    int const half = lane / 8 % 2;
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            scores[n][i] = 0.0F;
        }
    }
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k)
    {
#pragma unroll
        for (int n = 0; n < kKeys / 16; ++n)
        {
            uint32_t keys[4];
            load_matrix_x4(keys, tile + tile_offset<kHeadDim>(n * 16 + row, k * 2 + half));
            uint32_t const first[2] = {keys[0], keys[1]};
            uint32_t const second[2] = {keys[2], keys[3]};
            mma_m16n8k16<Element>(scores[2 * n], query[k], first);
            mma_m16n8k16<Element>(scores[2 * n + 1], query[k], second);
        }
    }
}

// The key, counted from the tile's first, of elements i = 0 and 1 of the lane's rows in scores[n].
__device__ inline int key_of(int n, int i)
{
    return n * 8 + 2 * (lane_index() % 4) + i;
}

// Hides keys from the lane's row r: all but begin[r] .. end[r], counted from the tile's first key.
template <int kKeys>
__device__ inline void mask_scores(float (&scores)[kKeys / 8][4], int32_t const (&begin)[2], int32_t const (&end)[2])
{
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            int const key = key_of(n, i % 2);
            bool const is_seen = key >= begin[i / 2] && key < end[i / 2];
            scores[n][i] = is_seen ? scores[n][i] : -INFINITY;
        }
    }
}

// Softmax of the lane's two rows over the keys so far (Milakov and Gimelshein 2018), in powers of two.
struct RunningSoftmax
{
    float maximum[2] = {-INFINITY, -INFINITY}; // of the scaled scores; the same in the four lanes of a row
    float sum[2] = {0.0F, 0.0F}; // of the lane's own keys
};

// Turns scores into probabilities relative to the new maximum and rescales `output` to it. `factor` is the scale of the
// scores times log2(e), positive.
template <int kKeys, int kHeadDim>
__device__ inline void advance(
    RunningSoftmax& softmax, float (&scores)[kKeys / 8][4], float (&output)[kHeadDim / 8][4], float factor)
{
#pragma unroll
    for (int r = 0; r < 2; ++r)
    {
        float highest = scores[0][2 * r];
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
        {
            highest = fmaxf(highest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
        }
        highest = fmaxf(highest, __shfl_xor_sync(kWholeWarp, highest, 1));
        highest = fmaxf(highest, __shfl_xor_sync(kWholeWarp, highest, 2));
        float const maximum = fmaxf(softmax.maximum[r], highest * factor);
        // While every key is hidden there is nothing to rescale, and -inf - -inf would be NaN.
        float const reference = maximum == -INFINITY ? 0.0F : maximum;
        float const rescale = exp2_fast(softmax.maximum[r] - reference);
        float sum = softmax.sum[r] * rescale;
#pragma unroll
        for (int n = 0; n < kKeys / 8; ++n)
        {
#pragma unroll
            for (int i = 2 * r; i < 2 * r + 2; ++i)
            {
                scores[n][i] = exp2_fast(fmaf(scores[n][i], factor, -reference));
                sum += scores[n][i];
            }
        }
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n)
        {
            output[n][2 * r] *= rescale;
            output[n][2 * r + 1] *= rescale;
        }
        softmax.maximum[r] = maximum;
        softmax.sum[r] = sum;
    }
}

// output += probabilities values, for the kKeys rows of a tile. In output[n], elements 0 and 1 are channels
// channel_of(n) and the next of the lane's row 0, elements 2 and 3 those of its row 1.
template <typename Element, int kHeadDim, int kKeys>
__device__ inline void multiply_values(
    float (&output)[kHeadDim / 8][4], float const (&probabilities)[kKeys / 8][4], unsigned char const* tile)
{
    int const lane = lane_index();
    int const row = lane / 8 % 2 * 8 + lane % 8; // matrices: the two halves of 16 keys with 8 channels, then 8 more
    int const half = lane / 16;
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k)
    {
        float const(&low)[4] = probabilities[2 * k];
        float const(&high)[4] = probabilities[2 * k + 1];
        uint32_t const packed[4] = {pack2<Element>(low[0], low[1]), pack2<Element>(low[2], low[3]),
            pack2<Element>(high[0], high[1]), pack2<Element>(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < kHeadDim / 16; ++n)
        {
            uint32_t values[4];
            load_matrix_x4_transposed(values, tile + tile_offset<kHeadDim>(k * 16 + row, n * 2 + half));
            uint32_t const first[2] = {values[0], values[1]};
            uint32_t const second[2] = {values[2], values[3]};
            mma_m16n8k16<Element>(output[2 * n], packed, first);
            mma_m16n8k16<Element>(output[2 * n + 1], packed, second);
        }
    }
}

__device__ inline int channel_of(int n)
{
    return n * 8 + 2 * (lane_index() % 4);
}

// The sum over all keys of a row, from the sums of its four lanes.
__device__ inline float sum_of_row(float sum)
{
    sum += __shfl_xor_sync(kWholeWarp, sum, 1);
    return sum + __shfl_xor_sync(kWholeWarp, sum, 2);
}

__device__ inline float highest_of_warp(float value)
{
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2)
    {
        value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, distance));
    }
    return value;
}

__device__ inline float sum_of_warp(float value)
{
#pragma unroll
    for (int distance = 1; distance < kWarpSize; distance *= 2)
    {
        value += __shfl_xor_sync(kWholeWarp, value, distance);
    }
    return value;
}

} // namespace q2export
