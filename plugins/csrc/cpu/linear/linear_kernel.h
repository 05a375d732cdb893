// Linear layers over weights of 16 and 32 bits; included by one source per instruction set.
#pragma once

#include "linear/matmul.h"

namespace q2export::cpu
{
namespace
{

// Rows for which widening a weight once per register tile costs less than keeping it widened.
constexpr int64_t kDirectRows = 4 * Simd::kTileRows;

template <typename Weight>
void direct(Linear const& linear, LinearTask const& task)
{
    int64_t const block = block_length(linear.in_features);
    int64_t const stride = linear.in_features * Weight::kBytes;
    int64_t const rows = task.last_row - task.first_row;
    int64_t const groups = (rows + Simd::kTileRows - 1) / Simd::kTileRows; // of nearly equal size
    auto const all_blocks = [&](int64_t out, int64_t out_stride, int64_t columns) {
        for (int64_t start = 0; start < linear.in_features; start += block)
        {
            int64_t const length = std::min(block, linear.in_features - start);
            Bytes const weight = linear.weight + out * stride + start * Weight::kBytes;
            for (int64_t group = 0; group < groups; ++group)
            {
                int64_t const row = task.first_row + group * rows / groups;
                multiply<Weight>(linear, row, task.first_row + (group + 1) * rows / groups - row,
                    {out, out_stride, columns, start, length, weight, out_stride * stride});
            }
        }
    };
    // The four columns of a tile run through a quarter of the task's weights each: four streams far apart are as fast as
    // one, and keep enough additions going, where four neighbouring rows in one page are half as fast. The processor
    // fetches ahead by itself; doing so here made it slower.
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

// Widens one block of an output's weights into a panel; the last vector is filled up with zeros. `next` is what is read
// after it: the processor does not see runs of one block coming.
template <typename Weight>
inline void widen_into_panel(Bytes weight, Bytes next, int64_t length, float* target)
{
    int64_t k = 0;
    for (; k + Simd::kWidth <= length; k += Simd::kWidth)
    {
        __builtin_prefetch(next + k * Weight::kBytes);
        Simd::store(target + panel_offset(k), Simd::widen(Weight{}, weight + k * Weight::kBytes));
    }
    if (k < length)
    {
        int const rest = static_cast<int>(length - k);
        Simd::store(target + panel_offset(k), Simd::widen_first(Weight{}, weight + k * Weight::kBytes, rest));
    }
}

template <typename Weight>
void packed(Linear const& linear, LinearTask const& task)
{
    int64_t const stride = linear.in_features * Weight::kBytes;
    multiply_packed(linear, task, [&](int64_t out, int64_t start, int64_t length, float* target) {
        Bytes const weight = linear.weight + out * stride + start * Weight::kBytes;
        widen_into_panel<Weight>(weight, out + 1 < task.last_out ? weight + stride : weight, length, target);
    });
}

template <template <typename> class Path>
void by_weight(Linear const& linear, LinearTask const& task)
{
    switch (linear.weight_dtype)
    {
    case Q2EXPORT_FLOAT16: Path<Float16>::run(linear, task); break;
    case Q2EXPORT_BFLOAT16: Path<BFloat16>::run(linear, task); break;
    default: Path<Float32>::run(linear, task); break;
    }
}

template <typename Weight>
struct Direct
{
    static void run(Linear const& linear, LinearTask const& task)
    {
        direct<Weight>(linear, task);
    }
};

template <typename Weight>
struct Packed
{
    static void run(Linear const& linear, LinearTask const& task)
    {
        packed<Weight>(linear, task);
    }
};

constexpr LinearKernels kKernels{kDirectRows, by_weight<Direct>, by_weight<Packed>};

} // namespace
} // namespace q2export::cpu
