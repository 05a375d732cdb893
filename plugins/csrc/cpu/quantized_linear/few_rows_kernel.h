// Up to kFewRows rows: codes go from memory to registers, in_features in lanes; included by one source per set.
//
// Four blocks of four outputs at a time. Integer sums are added up until a vector has one lane per block and output: only
// then are they converted and scaled. The four outputs lie far apart: four streams are as fast as one, where four
// neighbouring rows, in one page, come at half the speed.
#pragma once

#include <algorithm>

#include "linear/matmul.h"
#include "quantized_linear/quantized_linear.h"

namespace q2export::cpu
{
namespace
{

constexpr int64_t kFewRows = 4;
constexpr int kStreams = 4;                       // outputs at a time
constexpr int kUnit = 4;                          // blocks at a time
constexpr int kUnitSums = kStreams * kUnit;       // [kUnit][kStreams]
constexpr int kSums = kUnitSums / Simd::kWidth;   // vectors of them
constexpr int kVectorBytes = 4 * Simd::kWidth;

inline int64_t unit_count(PackedWeight const& weight)
{
    return (weight.blocks() + kUnit - 1) / kUnit;
}

// Places: values [rows, units, kUnit * block_size], of 4 bits the even elements of what a vector of codes holds, then the
// odd ones; scales and sums [rows, units, kUnit, kStreams], the same for all streams. Zero beyond the last block.
inline void arrange_few(PackedWeight const& weight, RoundedRow const& row, RoundedRows const& rounded, int64_t index)
{
    int64_t const units = unit_count(weight);
    int64_t const length = units * kUnit * weight.block_size;
    int8_t* const values = rounded.values + index * length;
    if (weight.bits == 8)
    {
        std::copy(row.values, row.values + weight.in_features, values);
        std::fill(values + weight.in_features, values + length, static_cast<int8_t>(0));
    }
    else
    {
        std::fill(values, values + length, static_cast<int8_t>(0));
        for (int64_t k = 0; k < weight.in_features; ++k)
        {
            int64_t const within = k % (2 * kVectorBytes);
            values[k - within + within % 2 * kVectorBytes + within / 2] = row.values[k];
        }
    }
    float* const scales = rounded.scales + index * units * kUnitSums;
    float* const sums = rounded.sums + index * units * kUnitSums;
    for (int64_t block = 0; block < units * kUnit; ++block)
    {
        bool const is_block = block < weight.blocks();
        std::fill_n(scales + block * kStreams, kStreams, is_block ? row.scales[block] : 0.0f);
        std::fill_n(sums + block * kStreams, kStreams, is_block ? row.sums[block] : 0.0f);
    }
}

// What a tile multiplies: four outputs, `stride` apart, of which the first `count` are written; a stride of 0 repeats one.
struct Streams
{
    int64_t first;
    int64_t stride;
    int count;
};

inline void load_zero_points(
    PackedWeight const& weight, Streams const& streams, int64_t unit, Simd::Vector (&points)[kSums])
{
    float values[kUnitSums] = {};
    int64_t const first = unit * kUnit;
    int64_t const count = std::min<int64_t>(kUnit, weight.blocks() - first);
    for (int64_t i = 0; i < count * kStreams; ++i)
    {
        int64_t const out = streams.first + i % kStreams * streams.stride;
        values[i] = static_cast<float>(weight.zero_point(out, first + i / kStreams));
    }
    for (int i = 0; i < kSums; ++i)
    {
        points[i] = Simd::load(values + i * Simd::kWidth);
    }
}

// Integer sums of four blocks of four outputs. kDepth is what a block takes of a unit's 64 * kDepth bytes of codes, in 16
// bytes: 1, 2, 4 or 8. Outputs lie code_stride bytes apart, rows value_stride.
template <int kBits, int kDepth, int kRows>
inline void unit_sums(Bytes codes, int64_t code_stride, int8_t const* values, int64_t value_stride,
    Integers::Vector (&sums)[kRows][kSums])
{
    using Vector = Integers::Vector;
    constexpr int kChain = std::max(1, kDepth * 4 / Simd::kWidth); // vectors of codes within a block
    constexpr int kFolds = kDepth / kChain;
    constexpr int kValueBytes = kBits == 4 ? 2 * kVectorBytes : kVectorBytes;
    for (int i = 0; i < kSums; ++i)
    {
        Vector parts[kRows][kFolds];
        for (int part = 0; part < kFolds; ++part)
        {
            Vector lanes[kRows][kStreams];
            for (int link = 0; link < kChain; ++link)
            {
                int const at = (i * kFolds + part) * kChain + link;
                for (int stream = 0; stream < kStreams; ++stream)
                {
                    Vector const both = Integers::load(codes + stream * code_stride + at * kVectorBytes);
                    Vector const low = kBits == 4 ? Integers::low_halves(both) : both;
                    Vector const high = Integers::high_halves(both);
                    for (int row = 0; row < kRows; ++row)
                    {
                        int8_t const* const x = values + row * value_stride + at * kValueBytes;
                        Vector const before = link == 0 ? Integers::zero() : lanes[row][stream];
                        Vector& sum = lanes[row][stream];
                        sum = Integers::dot<kBits>(low, Integers::load(x), before);
                        if constexpr (kBits == 4)
                        {
                            sum = Integers::dot<kBits>(high, Integers::load(x + kVectorBytes), sum);
                        }
                    }
                }
            }
            for (int row = 0; row < kRows; ++row)
            {
                parts[row][part] = Integers::add_quads(lanes[row]);
            }
        }
        for (int row = 0; row < kRows; ++row)
        {
            for (int left = kFolds; left > 1; left /= 2)
            {
                for (int pair = 0; pair < left / 2; ++pair)
                {
                    parts[row][pair] = Integers::fold(parts[row][2 * pair], parts[row][2 * pair + 1]);
                }
            }
            sums[row][i] = parts[row][0];
        }
    }
}

template <int kBits, int kDepth, int kRows>
void few_rows_tile(QuantizedLinear const& call, int64_t row, Streams const& streams)
{
    constexpr int64_t kUnitCodes = 64 * kDepth;
    constexpr int64_t kBlockSize = 128 * kDepth / kBits;
    PackedWeight const& weight = call.weight;
    int64_t const blocks = weight.in_features / kBlockSize;
    int64_t const units = (blocks + kUnit - 1) / kUnit;
    int64_t const value_stride = units * kUnit * kBlockSize;
    constexpr int64_t kScaleBytes = Float16::kBytes;
    bool const with_points = weight.zero_points != nullptr;
    int8_t const* const values = call.rounded.values + row * value_stride;
    float const* const value_sums = call.rounded.sums + row * units * kUnitSums;
    float const* const value_scales = call.rounded.scales + row * units * kUnitSums;
    Simd::Vector acc[kRows][kSums];
    for (auto& of_row : acc)
    {
        std::fill_n(of_row, kSums, Simd::zero());
    }
    Simd::Vector points[kSums];
    std::fill_n(points, kSums, Simd::broadcast(static_cast<float>(weight.default_zero_point())));
    auto const add_unit = [&](int64_t unit, Bytes codes, int64_t code_stride, Bytes scales, int64_t scale_stride) {
        // For one row the processor itself is ahead enough.
        for (int i = 0; kRows > 1 && i < kStreams * kDepth; ++i)
        {
            __builtin_prefetch(codes + i % kStreams * code_stride + i / kStreams * 64 + kFetchAhead);
        }
        Integers::Vector sums[kRows][kSums];
        unit_sums<kBits, kDepth>(codes, code_stride, values + unit * kUnit * kBlockSize, value_stride, sums);
        Simd::Vector weight_scales[kSums];
        Integers::load_quads(scales, scale_stride, weight_scales);
        if (with_points)
        {
            load_zero_points(weight, streams, unit, points);
        }
        for (int r = 0; r < kRows; ++r)
        {
            for (int i = 0; i < kSums; ++i)
            {
                int64_t const place = (r * units + unit) * kUnitSums + i * Simd::kWidth;
                // Whole numbers below 2^24: exact.
                Simd::Vector const sum = Simd::subtract_product(
                    points[i], Simd::load(value_sums + place), Integers::to_floats(sums[r][i]));
                Simd::Vector const scale = Simd::multiply(Simd::load(value_scales + place), weight_scales[i]);
                acc[r][i] = Simd::fma(sum, scale, acc[r][i]);
            }
        }
    };
    int64_t const code_bytes = weight.in_features * kBits / 8;
    Bytes codes = weight.codes + streams.first * code_bytes;
    Bytes scales = weight.scales + streams.first * blocks * kScaleBytes;
    int64_t const code_stride = streams.stride * code_bytes;
    int64_t const scale_stride = streams.stride * blocks * kScaleBytes;
    for (int64_t unit = 0; unit < blocks / kUnit; ++unit, codes += kUnitCodes, scales += kUnit * kScaleBytes)
    {
        add_unit(unit, codes, code_stride, scales, scale_stride);
    }
    if (int64_t const rest = blocks % kUnit; rest != 0)
    {
        // The activations beyond the end are zero, so that any codes do; but none may be read there.
        unsigned char padded_codes[kStreams][kUnitCodes] = {};
        unsigned char padded_scales[kStreams][kUnit * kScaleBytes] = {};
        for (int i = 0; i < kStreams; ++i)
        {
            std::memcpy(padded_codes[i], codes + i * code_stride, static_cast<size_t>(rest * kUnitCodes / kUnit));
            std::memcpy(padded_scales[i], scales + i * scale_stride, static_cast<size_t>(rest * kScaleBytes));
        }
        add_unit(units - 1, padded_codes[0], kUnitCodes, padded_scales[0], kUnit * kScaleBytes);
    }
    for (int r = 0; r < kRows; ++r)
    {
        float sums[kStreams];
        Integers::sum_blocks(acc[r], sums);
        for (int i = 0; i < streams.count; ++i)
        {
            int64_t const out = streams.first + i * streams.stride;
            call.linear.output[(row + r) * weight.out_features + out]
                = call.linear.bias == nullptr ? sums[i] : sums[i] + read_bias(call.linear, out);
        }
    }
}

// few_rows_tile for `rows` of 1 .. kFewRows.
template <int kBits, int kDepth, int kRows = kFewRows>
inline void few_rows_group(QuantizedLinear const& call, int64_t row, int64_t rows, Streams const& streams)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            few_rows_group<kBits, kDepth, kRows - 1>(call, row, rows, streams);
            return;
        }
    }
    few_rows_tile<kBits, kDepth, kRows>(call, row, streams);
}

template <int kBits, int kDepth>
void few_rows_streams(QuantizedLinear const& call, LinearTask const& task)
{
    int64_t const rows = task.last_row - task.first_row;
    int64_t const quarter = (task.last_out - task.first_out) / kStreams;
    for (int64_t out = task.first_out; out < task.first_out + quarter; ++out)
    {
        few_rows_group<kBits, kDepth>(call, task.first_row, rows, {out, quarter, kStreams});
    }
    for (int64_t out = task.first_out + quarter * kStreams; out < task.last_out; ++out)
    {
        few_rows_group<kBits, kDepth>(call, task.first_row, rows, {out, 0, 1});
    }
}

inline void multiply_few(QuantizedLinear const& call, LinearTask const& task)
{
    int const depth = call.weight.block_size * call.weight.bits / 128;
    if (call.weight.bits == 4)
    {
        (depth == 1 ? few_rows_streams<4, 1> : depth == 2 ? few_rows_streams<4, 2> : few_rows_streams<4, 4>)(call, task);
    }
    else
    {
        (depth == 2 ? few_rows_streams<8, 2> : depth == 4 ? few_rows_streams<8, 4> : few_rows_streams<8, 8>)(call, task);
    }
}

} // namespace
} // namespace q2export::cpu
