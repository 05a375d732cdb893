// What the tensor-core attention kernels share: products of query rows in the registers of a warp with tiles of keys and
// values in shared memory.
//
// The scheme is FlashAttention-2's (Dao 2023, section 3.3): the query rows are A operands; the scores of a tile of keys
// leave the tensor cores as accumulators; their softmax, rounded and packed in pairs, is in the layout of an A operand
// again, so that it multiplies the values without leaving the registers. With lane = 4 * group + quarter, a lane holds
// elements of rows `group` and `group + 8` alone, called its rows 0 and 1 below.
//
// A warp has kFragments x 16 query rows, and each fragment of keys or values that is read from shared memory serves all
// of them. With 16 rows, reading shared memory takes as long as the tensor cores take to multiply on an A100 (128 bytes
// and 1,024 multiply-adds a cycle and multiprocessor: 4 cycles a load_matrix_x4, 2 cycles each of the two products that
// use it), and longer on later chips; decode, which waits for memory, has no more. With 32 rows it takes half of that.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/shared_tile.cuh"

namespace q2export
{

constexpr int kFragmentRows = 16; // query rows of an A operand

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

// The key, counted from the tile's first, of elements i = 0 and 1 of the lane's rows in scores[n].
__device__ inline int key_of(int n, int i)
{
    return n * 8 + 2 * (lane_index() % 4) + i;
}

// low, high += left times two neighbouring right operands of eight columns.
template <typename Element>
__device__ inline void multiply_pair(
    float (&low)[4], float (&high)[4], uint32_t const (&left)[4], uint32_t const (&right)[4])
{
    uint32_t const first[2] = {right[0], right[1]};
    uint32_t const second[2] = {right[2], right[3]};
    mma_m16n8k16<Element>(low, left, first);
    mma_m16n8k16<Element>(high, left, second);
}

// Tiles are given by their offset in the block's shared memory, 1024-aligned. Because tile_offset permutes chunks by
// exclusive or, an even number of chunks further in a row is one instruction from the offset of chunk 0 or 1.
__device__ constexpr int skip_chunks(int offset, int chunks)
{
    return offset ^ (chunks * kChunkBytes);
}

// Hides keys from 16 rows: all but begin .. end, counted from the tile's first; element [half] is of row
// lane / 4 + 8 * half. Of begin, which only a window raises, nothing is done where it is not needed.
template <int kColumns>
__device__ inline void hide_keys(
    float (&scores)[kColumns][4], int32_t const (&begin)[2], int32_t const (&end)[2], bool has_window)
{
    int32_t const first = key_of(0, 0);
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            scores[n][i] = n * 8 + i % 2 < end[i / 2] - first ? scores[n][i] : -INFINITY;
        }
    }
    if (!has_window)
    {
        return;
    }
#pragma unroll
    for (int n = 0; n < kColumns; ++n)
    {
#pragma unroll
        for (int i = 0; i < 4; ++i)
        {
            scores[n][i] = n * 8 + i % 2 >= begin[i / 2] - first ? scores[n][i] : -INFINITY;
        }
    }
}

// The offset at which this lane reads 16 x 16 elements by load_matrix_x4, as matrices of rows 0-7 and 8-15 with the
// first eight columns, then with the others: an A operand, or transposed two B operands whose columns are the tile's.
template <int kHeadDim>
__device__ inline int rows_first(int tile)
{
    return tile + tile_offset<kHeadDim>(lane_index() % 16, lane_index() / 16);
}

// The same, as matrices of rows 0-7 with the first and the other columns, then rows 8-15: two B operands whose columns
// are the tile's rows.
template <int kHeadDim>
__device__ inline int columns_first(int tile)
{
    return tile + tile_offset<kHeadDim>(lane_index() / 16 * 8 + lane_index() % 8, lane_index() / 8 % 2);
}

// scores = query keys^T, unscaled, for a tile of 8 * kColumns keys. `load_fragment(query, fragment, k)` gives the A
// operand of rows 16 fragment .. and channels 16 k .. .
template <typename Element, int kHeadDim, int kFragments, int kColumns, typename LoadFragment>
__device__ inline void score_keys(
    float (&scores)[kFragments][kColumns][4], LoadFragment const& load_fragment, int tile)
{
    int const first = recomputed(columns_first<kHeadDim>(tile));
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
    {
#pragma unroll
        for (int n = 0; n < kColumns; ++n)
        {
            scores[f][n][0] = scores[f][n][1] = scores[f][n][2] = scores[f][n][3] = 0.0F;
        }
    }
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k)
    {
        uint32_t query[kFragments][4];
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
        {
            load_fragment(query[f], f, k);
        }
#pragma unroll
        for (int n = 0; n < kColumns / 2; ++n)
        {
            uint32_t keys[4];
            load_matrix_x4(keys, dynamic_shared() + skip_chunks(first, 2 * k) + kTileBytes<kHeadDim, 16> * n);
#pragma unroll
            for (int f = 0; f < kFragments; ++f)
            {
                multiply_pair<Element>(scores[f][2 * n], scores[f][2 * n + 1], query[f], keys);
            }
        }
    }
}

// output += weights values, for a tile of 16 * kSteps values. The weights are A operands.
template <typename Element, int kHeadDim, int kFragments, int kSteps>
__device__ inline void add_values(float (&output)[kFragments][kHeadDim / 8][4],
    uint32_t const (&weights)[kFragments][kSteps][4], int tile)
{
    int const first = recomputed(rows_first<kHeadDim>(tile));
#pragma unroll
    for (int k = 0; k < kSteps; ++k)
    {
#pragma unroll
        for (int n = 0; n < kHeadDim / 16; ++n)
        {
            uint32_t values[4];
            load_matrix_x4_transposed(
                values, dynamic_shared() + skip_chunks(first, 2 * n) + kTileBytes<kHeadDim, 16> * k);
#pragma unroll
            for (int f = 0; f < kFragments; ++f)
            {
                multiply_pair<Element>(output[f][2 * n], output[f][2 * n + 1], weights[f][k], values);
            }
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
