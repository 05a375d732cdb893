// Linear layers over packed weights, for the vectors of one instruction set; included by one source per set.
#pragma once

#include <cfloat>
#include <limits>

#include "quantized_linear/few_rows_kernel.h"
#include "quantized_linear/many_rows_kernel.h"

namespace q2export::cpu
{
namespace
{

void round_row(PackedWeight const& weight, float const* input, RoundedRow const& rounded)
{
    for (int64_t block = 0; block < weight.blocks(); ++block)
    {
        int64_t const start = block * weight.block_size;
        float const largest = Integers::largest_magnitude(input + start, weight.block_size);
        // A block with an infinity or NaN is NaN as a whole; one without a normal scale is zero.
        float const scale = largest <= FLT_MAX ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
        Simd::Vector const inverse = Simd::broadcast(scale >= FLT_MIN ? 1.0f / scale : 0.0f);
        Integers::Vector sum = Integers::zero();
        for (int64_t k = start; k < start + weight.block_size; k += Simd::kWidth)
        {
            Simd::Vector const value = Simd::multiply(Simd::load(input + k), inverse);
            sum = Integers::add(sum, Integers::store_rounded(rounded.values + k, value));
        }
        rounded.scales[block] = scale;
        rounded.sums[block] = static_cast<float>(Integers::sum(sum));
    }
}

int64_t rounded_bytes(PackedWeight const& weight, int64_t rows)
{
    int64_t const few = rows * unit_count(weight) * (kUnit * weight.block_size + 8 * kUnitSums);
    int64_t const many = panel_count(rows) * kPanelRows * (weight.in_features + 12 * weight.blocks());
    return ((rows <= kFewRows ? few : many) + 63) / 64 * 64;
}

RoundedRows place(PackedWeight const& weight, int64_t rows, void* memory)
{
    bool const few = rows <= kFewRows;
    int64_t const groups = few ? 1 : panel_count(rows);
    int64_t const group_rows = (rows + groups - 1) / groups; // nearly the same for all
    int64_t const numbers = few ? rows * unit_count(weight) * kUnitSums : groups * kPanelRows * weight.blocks();
    float* const scales = static_cast<float*>(memory);
    float* const sums = scales + numbers;
    int32_t* const offsets = reinterpret_cast<int32_t*>(sums + numbers);
    int8_t* const values = reinterpret_cast<int8_t*>(few ? offsets : offsets + numbers);
    return {group_rows, (rows + group_rows - 1) / group_rows, values, scales, sums, offsets};
}

void arrange(PackedWeight const& weight, RoundedRow const& row, int64_t rows, RoundedRows const& rounded, int64_t index)
{
    (rows <= kFewRows ? arrange_few : arrange_panel)(weight, row, rounded, index);
}

void multiply_rounded(QuantizedLinear const& call, LinearTask const& task)
{
    (call.linear.rows <= kFewRows ? multiply_few : multiply_many)(call, task);
}

// Weights of a row, `length` from element `start` on, into a panel. Both are multiples of 32, as block sizes are.
template <int kBits>
inline void dequantize(PackedWeight const& weight, int64_t out, int64_t start, int64_t length, float* target)
{
    Bytes const codes = weight.codes + out * weight.code_stride() + start * kBits / 8;
    for (int64_t k = 0; k < length;)
    {
        int64_t const block = (start + k) / weight.block_size;
        int64_t const end = std::min(length, (block + 1) * weight.block_size - start);
        Simd::Vector const scale = Simd::broadcast(weight.scale(out, block));
        Simd::Vector const zero_point = Simd::broadcast(static_cast<float>(weight.zero_point(out, block)));
        for (; k < end; k += Simd::kWidth)
        {
            Simd::Vector const code = Integers::codes_to_floats<kBits>(codes + k * kBits / 8);
            float* const place = target + panel_offset<Widened<Float32>>(k);
            Simd::store(place, Simd::multiply(Simd::subtract(code, zero_point), scale));
        }
    }
}

void multiply_exact(QuantizedLinear const& call, LinearTask const& task)
{
    auto const widen = call.weight.bits == 4 ? dequantize<4> : dequantize<8>;
    multiply_packed<Widened<Float32>>(
        call.linear, task, [&](int64_t out, int64_t start, int64_t length, float* target) {
            widen(call.weight, out, start, length, target);
        });
}

constexpr QuantizedLinearKernels kKernels{
    kFewRows, round_row, rounded_bytes, place, arrange, multiply_rounded, multiply_exact};

} // namespace
} // namespace q2export::cpu
