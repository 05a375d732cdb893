// The matrix products of the prefill attention, for kFragments x 16 query rows of a warp.
//
// They are those of tile.cuh, except that each fragment of keys or values that is read from shared memory serves all
// fragments of the query. With 16 rows a warp, reading shared memory takes as long as the tensor cores take to
// multiply on an A100 (128 bytes and 1,024 multiply-adds a cycle and multiprocessor: 4 cycles a load_matrix_x4, 2
// cycles each of the two products that use it), and longer on later chips. With 32 rows it takes half of that.
#pragma once

#include "attention/prefill_block.cuh"
#include "attention/tile.cuh"

namespace q2export
{

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

// Starts copying the first rows of `matrix` [left, kHeadDim] to a tile of kRows; what is missing becomes zero and is
// not read, so that no product with it is NaN. As copy_tile, with addresses that differ by constants, because the
// permutation of chunks repeats every eight rows.
template <int kHeadDim, int kRows, int kThreads, typename Element>
__device__ inline void copy_rows(int tile, Element const* matrix, int32_t left)
{
    constexpr int kChunks = kHeadDim / kChunkElements;
    constexpr int kRowsAtOnce = kThreads / kChunks;
    static_assert(kRowsAtOnce % 8 == 0 && kRows % kRowsAtOnce == 0);
    int const row = static_cast<int>(threadIdx.x) / kChunks;
    int const chunk = static_cast<int>(threadIdx.x) % kChunks;
    unsigned char* const target = dynamic_shared() + tile + tile_offset<kHeadDim>(row, chunk);
    Element const* const source = matrix + row * kHeadDim + chunk * kChunkElements;
#pragma unroll
    for (int i = 0; i < kRows; i += kRowsAtOnce)
    {
        copy_async_16(target + i * kHeadDim * 2, source + i * kHeadDim, i < left - row);
    }
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

// Hides what the rows of a warp do not see of the keys from `key` on.
template <int kFragments, int kColumns>
__device__ inline void mask_rows(
    float (&scores)[kFragments][kColumns][4], TileRows const& rows, int32_t key, int32_t sliding_window)
{
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
    {
        int32_t begin[2];
        int32_t end[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
        {
            int const row = first_row<kFragments * kFragmentRows>() + f * kFragmentRows + half * 8 + lane_index() / 4;
            int32_t const newest = rows.end_of(rows.token_of(row));
            begin[half] = begin_of(sliding_window, newest) - key;
            end[half] = newest - key;
        }
        hide_keys(scores[f], begin, end, sliding_window > 0);
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

} // namespace q2export
