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

// What a tile multiplies: up to four outputs, `stride` apart; those beyond `count` are repetitions.
struct Streams
{
    Streams(int64_t first, int64_t stride, int64_t count)
        : count(static_cast<int>(count))
    {
        for (int i = 0; i < kStreams; ++i)
        {
            outs[i] = first + std::min<int64_t>(i, count - 1) * stride;
        }
    }

    int64_t outs[kStreams];
    int count;
};

inline void load_scales(q2export_dtype dtype, Bytes const (&rows)[kStreams], Simd::Vector (&scales)[kSums])
{
    if (dtype == Q2EXPORT_FLOAT16)
    {
        Integers::load_quads(Float16{}, rows, scales);
    }
    else
    {
        Integers::load_quads(Float32{}, rows, scales);
    }
}

inline void load_zero_points(
    PackedWeight const& weight, Streams const& streams, int64_t unit, Simd::Vector (&points)[kSums])
{
    float values[kUnitSums] = {};
    int64_t const first = unit * kUnit;
    int64_t const count = std::min<int64_t>(kUnit, weight.blocks() - first);
    for (int64_t i = 0; i < count * kStreams; ++i)
    {
        values[i] = static_cast<float>(weight.zero_point(streams.outs[i % kStreams], first + i / kStreams));
    }
    for (int i = 0; i < kSums; ++i)
    {
        points[i] = Simd::load(values + i * Simd::kWidth);
    }
}

// Integer sums of four blocks of four outputs. kDepth is what a block takes of a unit's 64 * kDepth bytes of codes, in 16
// bytes: 1, 2, 4 or 8. Rows lie value_stride bytes apart.
template <int kBits, int kDepth, int kRows>
inline void unit_sums(Bytes const (&codes)[kStreams], int8_t const* values, int64_t value_stride,
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
                    Vector const both = Integers::load(codes[stream] + at * kVectorBytes);
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
    PackedWeight const& weight = call.weight;
    int64_t const units = unit_count(weight);
    int64_t const value_stride = units * kUnit * weight.block_size;
    int8_t const* const values = call.rounded.values + row * value_stride;
    Simd::Vector acc[kRows][kSums];
    for (auto& of_row : acc)
    {
        std::fill_n(of_row, kSums, Simd::zero());
    }
    Simd::Vector points[kSums];
    std::fill_n(points, kSums, Simd::broadcast(static_cast<float>(weight.default_zero_point())));
    auto const add_unit = [&](int64_t unit, Bytes const (&codes)[kStreams], Bytes const (&scale_rows)[kStreams]) {
        Integers::Vector sums[kRows][kSums];
        unit_sums<kBits, kDepth>(codes, values + unit * kUnit * weight.block_size, value_stride, sums);
        Simd::Vector scales[kSums];
        load_scales(weight.scale_dtype, scale_rows, scales);
        if (weight.zero_points != nullptr)
        {
            load_zero_points(weight, streams, unit, points);
        }
        for (int r = 0; r < kRows; ++r)
        {
            int64_t const place = ((row + r) * units + unit) * kUnitSums;
            for (int i = 0; i < kSums; ++i)
            {
                // Whole numbers below 2^24: exact.
                Simd::Vector const sum = Simd::subtract_product(
                    points[i], Simd::load(call.rounded.sums + place + i * Simd::kWidth), Integers::to_floats(sums[r][i]));
                Simd::Vector const scale = Simd::load(call.rounded.scales + place + i * Simd::kWidth);
                acc[r][i] = Simd::fma(sum, Simd::multiply(scale, scales[i]), acc[r][i]);
            }
        }
    };
    constexpr int64_t kUnitCodes = 64 * kDepth;
    int64_t const scale_bytes = weight.scale_stride() / weight.blocks();
    Bytes codes[kStreams];
    Bytes scales[kStreams];
    for (int i = 0; i < kStreams; ++i)
    {
        codes[i] = weight.codes + streams.outs[i] * weight.code_stride();
        scales[i] = weight.scales + streams.outs[i] * weight.scale_stride();
    }
    auto const advance = [&](Bytes (&rows)[kStreams], int64_t bytes) {
        for (Bytes& each : rows)
        {
            each += bytes;
        }
    };
    for (int64_t unit = 0; unit < weight.blocks() / kUnit; ++unit)
    {
        add_unit(unit, codes, scales);
        advance(codes, kUnitCodes);
        advance(scales, kUnit * scale_bytes);
    }
    if (int64_t const rest = weight.blocks() % kUnit; rest != 0)
    {
        // The activations beyond the end are zero, so that any codes do; but none may be read there.
        unsigned char padded_codes[kStreams][kUnitCodes] = {};
        unsigned char padded_scales[kStreams][kUnit * 4] = {};
        for (int i = 0; i < kStreams; ++i)
        {
            std::memcpy(padded_codes[i], codes[i], static_cast<size_t>(rest * kUnitCodes / kUnit));
            std::memcpy(padded_scales[i], scales[i], static_cast<size_t>(rest * scale_bytes));
            codes[i] = padded_codes[i];
            scales[i] = padded_scales[i];
        }
        add_unit(units - 1, codes, scales);
    }
    for (int r = 0; r < kRows; ++r)
    {
        float sums[kUnitSums];
        for (int i = 0; i < kSums; ++i)
        {
            Simd::store(sums + i * Simd::kWidth, acc[r][i]);
        }
        for (int i = 0; i < streams.count; ++i)
        {
            float const total = (sums[i] + sums[8 + i]) + (sums[4 + i] + sums[12 + i]);
            int64_t const out = streams.outs[i];
            call.linear.output[(row + r) * weight.out_features + out]
                = call.linear.bias == nullptr ? total : total + read_bias(call.linear, out);
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
    int64_t const rest = task.first_out + quarter * kStreams;
    if (rest < task.last_out)
    {
        few_rows_group<kBits, kDepth>(call, task.first_row, rows, {rest, 1, task.last_out - rest});
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
