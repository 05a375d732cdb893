// Linear layers over weights of 16 and 32 bits; included by one source per instruction set.
#pragma once

#include "linear/matmul.h"

namespace q2export::cpu
{
namespace
{

// Rows for which reading a weight once per register tile costs less than putting it into a panel.
constexpr int64_t kDirectRows = 4 * Simd::kTileRows;

template <typename Product>
void direct(Linear const& linear, LinearTask const& task)
{
    int64_t const block = block_length<Product>(linear.in_features);
    int64_t const stride = linear.in_features * Product::kBytes;
    int64_t const rows = task.last_row - task.first_row;
    int64_t const groups = (rows + Simd::kTileRows - 1) / Simd::kTileRows; // of nearly equal size
    auto const all_blocks = [&](int64_t out, int64_t out_stride, int64_t columns) {
        for (int64_t start = 0; start < linear.in_features; start += block)
        {
            int64_t const length = std::min(block, linear.in_features - start);
            Bytes const weight = linear.weight + out * stride + start * Product::kBytes;
            for (int64_t group = 0; group < groups; ++group)
            {
                int64_t const row = task.first_row + group * rows / groups;
                multiply<Product>(linear, row, task.first_row + (group + 1) * rows / groups - row,
                    {out, out_stride, columns, start, length, weight, out_stride * stride});
            }
        }
    };
    // The four columns of a tile run through a quarter of the task's weights each: four streams far apart are as fast as
    // one, and keep enough additions going, where four neighbouring rows in one page are half as fast.
    int64_t const quarter = (task.last_out - task.first_out) / kOuts;
    for (int64_t out = task.first_out; out < task.first_out + quarter; ++out)
    {
        all_blocks(out, quarter, kOuts);
    }
    for (int64_t out = task.first_out + quarter * kOuts; out < task.last_out; ++out)
    {
        all_blocks(out, 1, 1);
    }
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
