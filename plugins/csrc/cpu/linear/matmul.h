// The float32 matmul of all linear layers, for the vectors of one instruction set.
//
// Every path adds in one order, so that a row has the same bits whatever rows come along and whichever path runs:
// in_features is cut into blocks (block_length); a block's products are summed lane by lane, lanes are added as
// Simd::sum4 does; blocks are added from the first to the last, then the bias.
#pragma once

#include <algorithm>

#include "common/scratch.h"
#include "linear/linear.h"

namespace q2export::cpu
{
namespace
{

constexpr int64_t kMaxBlock = 896;      // elements of in_features summed at a time: rows of both sides fit the L1 cache
constexpr int64_t kPackedOuts = 64;     // outputs whose weights are widened at a time, at most kMaxBlock long: 256 KB
constexpr int kOuts = 4;                // columns of a register tile

// Length of all blocks but the last: equal shares, in whole cache lines.
inline int64_t block_length(int64_t in_features)
{
    int64_t const blocks = (in_features + kMaxBlock - 1) / kMaxBlock;
    int64_t const share = (in_features + blocks - 1) / blocks;
    return (share + 63) / 64 * 64;
}

inline float read_bias(Linear const& linear, int64_t out)
{
    if (linear.bias == nullptr)
    {
        return 0.0f;
    }
    switch (linear.bias_dtype)
    {
    case Q2EXPORT_FLOAT16: return Float16::read(linear.bias + out * 2);
    case Q2EXPORT_BFLOAT16: return BFloat16::read(linear.bias + out * 2);
    default: return Float32::read(linear.bias + out * 4);
    }
}

// Rows of input times columns of weights, over one block. Weights of `kColumns` outputs lie `weight_stride` bytes apart;
// columns of `sums` beyond them are zero.
template <typename Weight, int kRows, int kColumns>
inline void multiply_tile(float const* input, int64_t input_stride, Bytes weight, int64_t weight_stride, int64_t length,
    float (&sums)[kRows][kOuts])
{
    using Vector = Simd::Vector;
    Vector acc[kRows][kOuts];
    for (int row = 0; row < kRows; ++row)
    {
        for (int column = 0; column < kOuts; ++column)
        {
            acc[row][column] = Simd::zero();
        }
    }
    int64_t k = 0;
    for (; k + Simd::kWidth <= length; k += Simd::kWidth)
    {
        Vector w[kColumns];
        for (int column = 0; column < kColumns; ++column)
        {
            w[column] = Simd::widen(Weight{}, weight + column * weight_stride + k * Weight::kBytes);
        }
        for (int row = 0; row < kRows; ++row)
        {
            Vector const x = Simd::load(input + row * input_stride + k);
            for (int column = 0; column < kColumns; ++column)
            {
                acc[row][column] = Simd::fma(x, w[column], acc[row][column]);
            }
        }
    }
    if (k < length)
    {
        int const rest = static_cast<int>(length - k);
        for (int column = 0; column < kColumns; ++column)
        {
            Vector const w
                = Simd::widen_first(Weight{}, weight + column * weight_stride + k * Weight::kBytes, rest);
            for (int row = 0; row < kRows; ++row)
            {
                Vector const x = Simd::load_first(input + row * input_stride + k, rest);
                acc[row][column] = Simd::fma(x, w, acc[row][column]);
            }
        }
    }
    for (int row = 0; row < kRows; ++row)
    {
        Simd::sum4(acc[row], sums[row]);
    }
}

// Adds a block's sums to outputs `out_stride` apart: `first` and `last` say which of its blocks this is.
template <int kRows>
inline void add_sums(Linear const& linear, int64_t row, int64_t out, int64_t out_stride, int columns, bool first,
    bool last, float const (&sums)[kRows][kOuts])
{
    for (int r = 0; r < kRows; ++r)
    {
        float* const target = linear.output + (row + r) * linear.out_features + out;
        for (int column = 0; column < columns; ++column)
        {
            int64_t const offset = column * out_stride;
            float value = first ? sums[r][column] : target[offset] + sums[r][column];
            if (last && linear.bias != nullptr)
            {
                value += read_bias(linear, out + offset);
            }
            target[offset] = value;
        }
    }
}

// A register tile's place: `columns` outputs, `out_stride` apart, and one block of their weights, `weight_stride` bytes
// apart.
struct Tile
{
    int64_t out;
    int64_t out_stride;
    int64_t columns; // 1 or kOuts
    int64_t start;
    int64_t length;
    Bytes weight;
    int64_t weight_stride;
};

template <typename Weight, int kRows>
inline void multiply_rows(Linear const& linear, int64_t row, Tile const& tile)
{
    float sums[kRows][kOuts];
    float const* const input = linear.input + row * linear.in_features + tile.start;
    if (tile.columns == kOuts)
    {
        multiply_tile<Weight, kRows, kOuts>(
            input, linear.in_features, tile.weight, tile.weight_stride, tile.length, sums);
    }
    else
    {
        multiply_tile<Weight, kRows, 1>(
            input, linear.in_features, tile.weight, tile.weight_stride, tile.length, sums);
    }
    add_sums(linear, row, tile.out, tile.out_stride, static_cast<int>(tile.columns), tile.start == 0,
        tile.start + tile.length == linear.in_features, sums);
}

// multiply_rows for `rows` of 1 .. kTileRows.
template <typename Weight, int kRows = Simd::kTileRows>
inline void multiply(Linear const& linear, int64_t row, int64_t rows, Tile const& tile)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            multiply<Weight, kRows - 1>(linear, row, rows, tile);
            return;
        }
    }
    multiply_rows<Weight, kRows>(linear, row, tile);
}

// Multiplies all rows of a task with one tile of widened weights after the other. `widen(out, outs, start, length, target,
// stride)` writes a tile: `outs` rows of `length` floats, `stride` apart.
template <typename Widen>
void multiply_packed(Linear const& linear, LinearTask const& task, Widen const& widen)
{
    int64_t const block = block_length(linear.in_features);
    int64_t const rows = task.last_row - task.first_row;
    int64_t const groups = (rows + Simd::kTileRows - 1) / Simd::kTileRows; // of nearly equal size
    int64_t const stride = block + 16; // a cache line more, so that rows do not fall on the same sets
    size_t const bytes = static_cast<size_t>(kPackedOuts * stride) * sizeof(float);
    float* const packed = static_cast<float*>(thread_scratch(Scratch::kWeights, bytes));
    for (int64_t start = 0; start < linear.in_features; start += block)
    {
        int64_t const length = std::min(block, linear.in_features - start);
        for (int64_t first = task.first_out; first < task.last_out; first += kPackedOuts)
        {
            int64_t const outs = std::min(kPackedOuts, task.last_out - first);
            widen(first, outs, start, length, packed, stride);
            for (int64_t group = 0; group < groups; ++group)
            {
                int64_t const row = task.first_row + group * rows / groups;
                int64_t const count = task.first_row + (group + 1) * rows / groups - row;
                for (int64_t out = 0; out < outs;)
                {
                    int64_t const columns = outs - out >= kOuts ? kOuts : 1;
                    Bytes const weight = reinterpret_cast<Bytes>(packed + out * stride);
                    multiply<Float32>(linear, row, count,
                        {first + out, 1, columns, start, length, weight, stride * Float32::kBytes});
                    out += columns;
                }
            }
        }
    }
}

} // namespace
} // namespace q2export::cpu
