// The matmul of all linear layers, for the vectors of one instruction set.
//
// Every path of a Product adds in one order, so that a row has the same bits whatever rows come along and whichever path
// runs: in_features is cut into blocks (block_length); a block's products are summed lane by lane, lanes are added as
// Simd::sum4 does; blocks are added from the first to the last, then the bias.
#pragma once

#include <algorithm>

#include "common/scratch.h"
#include "linear/product.h"

namespace q2export::cpu
{
namespace
{

// Loops over a register tile: one that is not unrolled keeps the tile in memory.
#if defined(__clang__)
#define Q2EXPORT_UNROLL _Pragma("unroll")
#else
#define Q2EXPORT_UNROLL _Pragma("GCC unroll 32")
#endif

// Has a vector loaded once: where few instructions use it, GCC loads it again for each.
#if defined(__AVX2__) && defined(__GNUC__)
#define Q2EXPORT_IN_REGISTER(vector) __asm__("" : "+v"(vector))
#else
#define Q2EXPORT_IN_REGISTER(vector)
#endif

constexpr int64_t kBlockBytes = 3584; // of a row that are summed at a time: what a tile reads is about the L1 cache
constexpr int64_t kPackedOuts = 64;   // outputs whose weights are put into panels at a time: 224 KB
constexpr int kOuts = 4;              // columns of a panel
constexpr int kFetchAhead = 1024;     // bytes by which weights are fetched into the L1 cache

// Length of all blocks but the last: equal shares, in whole cache lines of 16-bit and 32-bit elements.
template <typename Product>
inline int64_t block_length(int64_t in_features)
{
    constexpr int64_t kMost = kBlockBytes / sizeof(typename Product::Element);
    int64_t const blocks = (in_features + kMost - 1) / kMost;
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

// Rows of input times columns of weights, over one block. Weights of `kColumns` outputs lie `weight_stride` bytes apart and
// are fetched `kAhead` bytes ahead. Sums are written row by row, as many as fill whole fours.
template <typename Product, int kRows, int kColumns, int kAhead = 0>
inline void multiply_tile(typename Product::Element const* input, int64_t input_stride, Bytes weight,
    int64_t weight_stride, int64_t length, float* sums)
{
    using Operand = typename Product::Operand;
    constexpr int kFours = (kRows * kColumns + 3) / 4;
    Simd::Vector acc[kFours][4]; // row by row
    Q2EXPORT_UNROLL
    for (int i = 0; i < kFours * 4; ++i)
    {
        acc[i / 4][i % 4] = Simd::zero();
    }
    int64_t k = 0;
    for (; k + Product::kStep <= length; k += Product::kStep)
    {
        Operand w[kColumns];
        Q2EXPORT_UNROLL
        for (int column = 0; column < kColumns; ++column)
        {
            if (kAhead > 0)
            {
                __builtin_prefetch(weight + column * weight_stride + k * Product::kBytes + kAhead, 0, 2); // to the L2 cache
            }
            w[column] = Product::weight(weight + column * weight_stride + k * Product::kBytes);
        }
        Q2EXPORT_UNROLL
        for (int row = 0; row < kRows; ++row)
        {
            Operand x = Product::load(input + row * input_stride + k);
            if (kColumns < 4)
            {
                Q2EXPORT_IN_REGISTER(x);
            }
            Q2EXPORT_UNROLL
            for (int column = 0; column < kColumns; ++column)
            {
                Simd::Vector& sum = acc[(row * kColumns + column) / 4][(row * kColumns + column) % 4];
                sum = Product::add(x, w[column], sum);
            }
        }
    }
    if (k < length)
    {
        int const rest = static_cast<int>(length - k);
        Q2EXPORT_UNROLL
        for (int column = 0; column < kColumns; ++column)
        {
            Operand const w
                = Product::weight_first(weight + column * weight_stride + k * Product::kBytes, rest);
            Q2EXPORT_UNROLL
            for (int row = 0; row < kRows; ++row)
            {
                Operand const x = Product::load_first(input + row * input_stride + k, rest);
                Simd::Vector& sum = acc[(row * kColumns + column) / 4][(row * kColumns + column) % 4];
                sum = Product::add(x, w, sum);
            }
        }
    }
    Q2EXPORT_UNROLL
    for (int four = 0; four < kFours; ++four)
    {
        Simd::store4(sums + four * 4, Simd::sum4(acc[four]));
    }
}

// Where element `k` of a panel's column lies: vectors of the four columns alternate, so that a tile reads one stream.
template <typename Product>
inline int64_t panel_offset(int64_t k)
{
    return k / Product::kStep * (kOuts * Product::kStep) + k % Product::kStep;
}

// One block of a task: `outs` outputs from `first_out` on, four per panel.
template <typename Product>
struct Panels
{
    typename Product::Element const* data;
    int64_t stride; // of a panel, in elements
    int64_t first_out;
    int64_t outs;
    int64_t start;
    int64_t length;
};

// Rows of input times the columns of a panel, over one block, into registers. kAhead: fetches as much as one row from
// `ahead`, which will be wanted next.
template <typename Product, int kRows, bool kAhead>
inline void multiply_panel(typename Product::Element const* input, int64_t input_stride,
    typename Product::Element const* panel, int64_t length, typename Product::Element const* ahead,
    Simd::Vector (&acc)[kRows][kOuts])
{
    using Operand = typename Product::Operand;
    Q2EXPORT_UNROLL
    for (int row = 0; row < kRows; ++row)
    {
        Q2EXPORT_UNROLL
        for (int column = 0; column < kOuts; ++column)
        {
            acc[row][column] = Simd::zero();
        }
    }
    auto const add = [&](auto const& load) {
        Operand w[kOuts];
        Q2EXPORT_UNROLL
        for (int column = 0; column < kOuts; ++column)
        {
            w[column] = Product::load(panel + column * Product::kStep);
        }
        Q2EXPORT_UNROLL
        for (int row = 0; row < kRows; ++row)
        {
            Operand const x = load(input + row * input_stride);
            Q2EXPORT_UNROLL
            for (int column = 0; column < kOuts; ++column)
            {
                acc[row][column] = Product::add(x, w[column], acc[row][column]);
            }
        }
    };
    int64_t k = 0;
    for (; k + Product::kStep <= length; k += Product::kStep)
    {
        if (kAhead)
        {
            __builtin_prefetch(ahead + k, 0, 2); // to the L2 cache
        }
        add([](auto const* source) { return Product::load(source); });
        input += Product::kStep;
        panel += kOuts * Product::kStep;
    }
    if (k < length)
    {
        int const rest = static_cast<int>(length - k);
        add([rest](auto const* source) { return Product::load_first(source, rest); });
    }
}

// Adds a block's sums to four outputs of each row.
template <int kRows>
inline void add_panel_sums(
    Simd::Vector const (&acc)[kRows][kOuts], bool first, float const* bias, float* output, int64_t output_stride)
{
    Q2EXPORT_UNROLL
    for (int row = 0; row < kRows; ++row)
    {
        float* const target = output + row * output_stride;
        Simd::Four sum = Simd::sum4(acc[row]);
        sum = first ? sum : Simd::add4(Simd::load4(target), sum);
        sum = bias == nullptr ? sum : Simd::add4(sum, Simd::load4(bias));
        Simd::store4(target, sum);
    }
}

template <int kRows>
inline void copy_columns(float const* source, int64_t source_stride, int64_t columns, float* target, int64_t target_stride)
{
    for (int row = 0; row < kRows; ++row)
    {
        std::copy(source + row * source_stride, source + row * source_stride + columns, target + row * target_stride);
    }
}

// One panel, that of output `out` of `panels`, times rows of input, added to the output.
template <typename Product, int kRows, bool kAhead>
inline void multiply_and_add(Linear const& linear, int64_t row, int64_t out, Panels<Product> const& panels,
    float const* bias, typename Product::Element const* ahead)
{
    auto const* const input = Product::input(linear) + row * linear.in_features + panels.start;
    auto const* const panel = panels.data + out / kOuts * panels.stride;
    float* const output = linear.output + row * linear.out_features + panels.first_out + out;
    int64_t const stride = linear.out_features;
    int64_t const columns = std::min<int64_t>(kOuts, panels.outs - out);
    float const* const add = bias == nullptr ? nullptr : bias + out;
    Simd::Vector acc[kRows][kOuts];
    multiply_panel<Product, kRows, kAhead>(input, linear.in_features, panel, panels.length, ahead, acc);
    float few[kRows * kOuts] = {};
    bool const whole = columns == kOuts;
    if (!whole)
    {
        copy_columns<kRows>(output, stride, columns, few, kOuts);
    }
    add_panel_sums<kRows>(acc, panels.start == 0, add, whole ? output : few, whole ? stride : kOuts);
    if (!whole)
    {
        copy_columns<kRows>(few, kOuts, columns, output, stride);
    }
}

// All panels times `rows` of 1 .. kTileRows. `bias` is of the panels' outputs, null before the last block.
template <typename Product, int kRows = Simd::kTileRows>
inline void multiply_panels(
    Linear const& linear, int64_t row, int64_t rows, Panels<Product> const& panels, float const* bias)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            multiply_panels<Product, kRows - 1>(linear, row, rows, panels, bias);
            return;
        }
    }
    int64_t const stride = linear.in_features;
    auto const* const all = Product::input(linear) + panels.start;
    for (int64_t out = 0; out < panels.outs; out += kOuts)
    {
        // The first panel wants the next rows all at once. Where they are no continuation of these, the processor does not
        // see them coming: each panel of these rows fetches one of them.
        int64_t const later = row + kRows + out / kOuts;
        if (panels.length < stride && out / kOuts < kRows && later < linear.rows)
        {
            multiply_and_add<Product, kRows, true>(linear, row, out, panels, bias, all + later * stride);
        }
        else
        {
            multiply_and_add<Product, kRows, false>(linear, row, out, panels, bias, nullptr);
        }
    }
}

// Multiplies all rows of a task with one block of widened weights after the other. `widen(out, start, length, target)`
// writes a block of one output's weights: element k to target[panel_offset<Product>(k)].
template <typename Product, typename Widen>
void multiply_packed(Linear const& linear, LinearTask const& task, Widen const& widen)
{
    using Element = typename Product::Element;
    int64_t const block = block_length<Product>(linear.in_features);
    int64_t const rows = task.last_row - task.first_row;
    int64_t const groups = (rows + Simd::kTileRows - 1) / Simd::kTileRows; // of nearly equal size
    int64_t const stride = block * kOuts;
    size_t const bytes = static_cast<size_t>(kPackedOuts * block) * sizeof(Element);
    auto* const packed = static_cast<Element*>(thread_scratch(Scratch::kWeights, bytes));
    for (int64_t start = 0; start < linear.in_features; start += block)
    {
        int64_t const length = std::min(block, linear.in_features - start);
        for (int64_t first = task.first_out; first < task.last_out; first += kPackedOuts)
        {
            int64_t const outs = std::min(kPackedOuts, task.last_out - first);
            std::fill(packed + outs / kOuts * stride, packed + (outs + kOuts - 1) / kOuts * stride, Element{});
            for (int64_t out = 0; out < outs; ++out)
            {
                Element* const target = packed + out / kOuts * stride + out % kOuts * Product::kStep;
                widen(first + out, start, length, target);
            }
            bool const has_bias = linear.bias != nullptr && start + length == linear.in_features;
            float bias[kPackedOuts] = {};
            for (int64_t out = 0; has_bias && out < outs; ++out)
            {
                bias[out] = read_bias(linear, first + out);
            }
            for (int64_t group = 0; group < groups; ++group)
            {
                int64_t const row = task.first_row + group * rows / groups;
                int64_t const count = task.first_row + (group + 1) * rows / groups - row;
                multiply_panels<Product>(
                    linear, row, count, {packed, stride, first, outs, start, length}, has_bias ? bias : nullptr);
            }
        }
    }
}

} // namespace
} // namespace q2export::cpu
