// Linear layers over weights of 16 and 32 bits; included by one source per instruction set.
#pragma once

#include "linear/matmul.h"

namespace q2export::cpu
{
namespace
{

// Rows for which reading a weight once per register tile costs less than putting it into a panel.
constexpr int64_t kDirectRows = 12 * Simd::kTileRows;
constexpr int kTileSums = Simd::kTileRows * kOuts; // that registers hold
constexpr int kRegisters = kTileSums * 4 / 3;      // for sums, a weight of each column, and an input
constexpr int kTallestTile = kTileSums / 3;        // rows that are multiplied with a weight once it is widened
// Rows of a tile where there are more: a nearly square one, if registers hold it.
constexpr int kManyRows = (Simd::kTileRows + 1) * kOuts < kRegisters ? Simd::kTileRows : kTallestTile;
// Bytes by which a tile of three rows or more fetches weights ahead; with fewer the processor itself is ahead enough.
constexpr int kStreamAhead = 3072;
constexpr int64_t kPageBytes = 4096;
constexpr int64_t kTouchedBytes = 8 * kPageBytes; // of each stream whose pages are looked up at a time

// Columns of a tile of so many rows. Each is a stream of weights.
constexpr int tile_columns(int rows)
{
    return rows <= 2 ? kOuts : std::min(6, (kRegisters - 1) / (rows + 1));
}

// A tile's place: outputs `out_stride` apart, and one block of their weights, `weight_stride` bytes apart.
struct Tile
{
    int64_t out;
    int64_t out_stride;
    int64_t start;
    int64_t length;
    Bytes weight;
    int64_t weight_stride;
};

// Adds a tile's sums over one block to the output.
template <int kRows, int kColumns>
inline void add_sums(Linear const& linear, int64_t row, Tile const& tile, float const* sums)
{
    bool const first = tile.start == 0;
    bool const has_bias = linear.bias != nullptr && tile.start + tile.length == linear.in_features;
    for (int column = 0; column < kColumns; ++column)
    {
        int64_t const out = tile.out + column * tile.out_stride;
        float const bias = has_bias ? read_bias(linear, out) : 0.0f;
        for (int r = 0; r < kRows; ++r)
        {
            float& target = linear.output[(row + r) * linear.out_features + out];
            float const sum = first ? sums[r * kColumns + column] : target + sums[r * kColumns + column];
            target = has_bias ? sum + bias : sum;
        }
    }
}

// `rows` of kRows or one less, as the groups of a call are.
template <typename Product, int kColumns, int kRows, bool kWhole = false>
inline void multiply(Linear const& linear, int64_t row, int64_t rows, Tile const& tile)
{
    if constexpr (kRows > 1 && !kWhole)
    {
        if (rows < kRows)
        {
            multiply<Product, kColumns, kRows - 1, true>(linear, row, rows, tile);
            return;
        }
    }
    constexpr int kAhead = kColumns == 1 || kRows < 3 ? 0 : kStreamAhead;
    float sums[(kRows * kColumns + 3) / 4 * 4];
    multiply_tile<Product, kRows, kColumns, kAhead>(Product::input(linear) + row * linear.in_features + tile.start,
        linear.in_features, tile.weight, tile.weight_stride, tile.length, sums);
    add_sums<kRows, kColumns>(linear, row, tile, sums);
}

// All rows of a task times `kColumns` outputs.
template <typename Product, int kRows, int kColumns>
inline void multiply_columns(Linear const& linear, LinearTask const& task, int64_t groups, int64_t out, int64_t out_stride)
{
    int64_t const block = block_length<Product>(linear.in_features);
    int64_t const stride = linear.in_features * Product::kBytes;
    int64_t const rows = task.last_row - task.first_row;
    for (int64_t start = 0; start < linear.in_features; start += block)
    {
        int64_t const length = std::min(block, linear.in_features - start);
        Bytes const weight = linear.weight + out * stride + start * Product::kBytes;
        for (int64_t group = 0; group < groups; ++group)
        {
            int64_t const row = task.first_row + group * rows / groups;
            multiply<Product, kColumns, kRows>(linear, row, task.first_row + (group + 1) * rows / groups - row,
                {out, out_stride, start, length, weight, out_stride * stride});
        }
    }
}

// Touches the pages of the next `bytes` of all streams, `stride` bytes apart. A tile waits for the address of each new page
// in turn; here the processor looks them up side by side.
template <int kStreams>
inline void touch_pages(Bytes weight, int64_t stride, int64_t bytes)
{
    for (int64_t at = kStreamAhead; at < kStreamAhead + bytes + kPageBytes; at += kPageBytes)
    {
        Q2EXPORT_UNROLL
        for (int stream = 0; stream < kStreams; ++stream)
        {
            __builtin_prefetch(weight + stream * stride + at, 0, 2);
        }
    }
}

// A task whose rows are cut into groups of at most `kRows`.
template <typename Product, int kRows>
void direct_by_rows(Linear const& linear, LinearTask const& task, int64_t groups)
{
    // The columns of a tile run through equal parts of the task's weights: streams far apart are as fast as one, and keep
    // enough additions going, where neighbouring rows in one page are half as fast.
    constexpr int kColumns = tile_columns(kRows);
    int64_t const part = (task.last_out - task.first_out) / kColumns;
    int64_t const stride = linear.in_features * Product::kBytes;
    int64_t const touched = std::max<int64_t>(1, kTouchedBytes / stride);
    for (int64_t i = 0; i < part; ++i)
    {
        int64_t const out = task.first_out + i;
        if (i % touched == 0)
        {
            touch_pages<kColumns>(linear.weight + out * stride, part * stride, touched * stride);
        }
        multiply_columns<Product, kRows, kColumns>(linear, task, groups, out, part);
    }
    for (int64_t out = task.first_out + part * kColumns; out < task.last_out; ++out)
    {
        multiply_columns<Product, kRows, 1>(linear, task, groups, out, 1);
    }
}

template <typename Product, int kRows = kTallestTile>
void direct(Linear const& linear, LinearTask const& task)
{
    int64_t const rows = task.last_row - task.first_row;
    int64_t const groups = rows <= kTallestTile ? 1 : (rows + kManyRows - 1) / kManyRows; // of nearly equal size
    if constexpr (kRows > 1)
    {
        if ((rows + groups - 1) / groups < kRows)
        {
            direct<Product, kRows - 1>(linear, task);
            return;
        }
    }
    direct_by_rows<Product, kRows>(linear, task, groups);
}

// Puts one block of an output's weights into a panel; the last vector is filled up with zeros. `next` is what is read
// after it: the processor does not see runs of one block coming.
template <typename Product>
inline void put_into_panel(Bytes weight, Bytes next, int64_t length, typename Product::Element* target)
{
    int64_t k = 0;
    for (; k + Product::kStep <= length; k += Product::kStep)
    {
        __builtin_prefetch(next + k * Product::kBytes);
        Product::store(target + panel_offset<Product>(k), Product::weight(weight + k * Product::kBytes));
    }
    if (k < length)
    {
        int const rest = static_cast<int>(length - k);
        Product::store(
            target + panel_offset<Product>(k), Product::weight_first(weight + k * Product::kBytes, rest));
    }
}

template <typename Product>
void packed(Linear const& linear, LinearTask const& task)
{
    using Element = typename Product::Element;
    int64_t const stride = linear.in_features * Product::kBytes;
    multiply_packed<typename Product::InPanel>(
        linear, task, [&](int64_t out, int64_t start, int64_t length, Element* target) {
            Bytes const weight = linear.weight + out * stride + start * Product::kBytes;
            put_into_panel<Product>(weight, out + 1 < task.last_out ? weight + stride : weight, length, target);
        });
}

} // namespace
} // namespace q2export::cpu
