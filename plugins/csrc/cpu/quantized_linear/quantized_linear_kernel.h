// Matmuls over packed weights, for the vectors of one instruction set; included by one source per set.
//
// A chunk is what one vector of integer sums covers: eight elements per lane of 4 bits, four of 8 bits. Codes are not
// unpacked in memory for few rows: a tile's products are added in integers, which is exact, and scaled chunk by chunk into
// float32 sums. These are added from the first chunk to the last, lanes as Simd::sum4 does, then the bias: the same for
// every number of rows.
#pragma once

#include <algorithm>

#include "linear/matmul.h"
#include "quantized_linear/quantized_linear.h"

namespace q2export::cpu
{
namespace
{

constexpr int kRoundedRows = Simd::kTileRows < 4 ? Simd::kTileRows : 4; // of a register tile, by four columns
constexpr int64_t kDirectRoundedRows = 4 * kRoundedRows; // for which codes are unpacked once per register tile
constexpr int kMaxChunk = 8 * Simd::kWidth;

inline int64_t chunk_length(PackedWeight const& weight)
{
    return (weight.bits == 4 ? 8 : 4) * Simd::kWidth;
}

inline int64_t chunk_count(PackedWeight const& weight)
{
    return (weight.in_features + chunk_length(weight) - 1) / chunk_length(weight);
}

size_t rounded_bytes(PackedWeight const& weight, int64_t rows)
{
    int64_t const chunks = chunk_count(weight);
    return static_cast<size_t>(rows * chunks * (chunk_length(weight) + 12 * Simd::kWidth));
}

RoundedRows place(PackedWeight const& weight, int64_t rows, void* memory)
{
    int64_t const chunks = chunk_count(weight);
    int64_t const lanes = rows * chunks * Simd::kWidth;
    float* const scales = static_cast<float*>(memory);
    float* const sums = scales + lanes;
    int32_t* const offsets = reinterpret_cast<int32_t*>(sums + lanes);
    return {chunks, reinterpret_cast<int8_t*>(offsets + lanes), offsets, sums, scales};
}

void round_row(PackedWeight const& weight, float const* input, RoundedRows const& rounded, int64_t row)
{
    int64_t const length = chunk_length(weight);
    int64_t const per_lane = length / Simd::kWidth;
    int8_t* const values = rounded.values + row * rounded.chunks * length;
    int64_t const first_lane = row * rounded.chunks * Simd::kWidth;
    float* const scales = rounded.scales + first_lane;
    std::fill(scales, scales + rounded.chunks * Simd::kWidth, 0.0f);
    std::memset(values, 0, static_cast<size_t>(rounded.chunks * length));
    for (int64_t start = 0; start < weight.in_features; start += weight.block_size)
    {
        float const scale = Simd::largest_magnitude(input + start, weight.block_size) / 127.0f;
        Simd::Vector const inverse = Simd::broadcast(scale > 0.0f ? 1.0f / scale : 0.0f);
        for (int64_t k = start; k < start + weight.block_size; k += Simd::kWidth)
        {
            Simd::store_rounded(values + k, Simd::multiply(Simd::load(input + k), inverse));
        }
        std::fill(scales + start / per_lane, scales + (start + weight.block_size) / per_lane, scale);
    }
    unsigned char ones[4 * Simd::kWidth];
    std::memset(ones, 1, sizeof ones);
    for (int64_t chunk = 0; chunk < rounded.chunks; ++chunk)
    {
        int8_t* const target = values + chunk * length;
        Simd::Ints sums = Simd::no_ints();
        if (weight.bits == 4)
        {
            int8_t in_order[kMaxChunk];
            std::memcpy(in_order, target, sizeof in_order);
            for (int k = 0; k < kMaxChunk / 2; ++k)
            {
                target[k] = in_order[2 * k];
                target[kMaxChunk / 2 + k] = in_order[2 * k + 1];
            }
            sums = Simd::dot(ones, target + kMaxChunk / 2, sums);
        }
        sums = Simd::dot(ones, target, sums);
        int64_t const lane = first_lane + chunk * Simd::kWidth;
        Simd::store(rounded.sums + lane, Simd::to_floats(sums));
        Simd::store_ints(rounded.offsets + lane, Simd::multiply_ints(sums, -weight.default_zero_point()));
    }
}

// Columns of weights as a tile reads them, and where their sums go.
struct Columns
{
    int64_t out;
    int64_t stride; // in outputs
    int64_t count;  // 1 or kOuts
    Bytes codes;
    int64_t code_stride;
};

// What is the same for a whole matrix.
struct Layout
{
    explicit Layout(PackedWeight const& weight)
        : chunk(chunk_length(weight))
        , code_bytes(chunk * weight.bits / 8)
        , scales_per_chunk(static_cast<int>(std::max<int64_t>(1, chunk / weight.block_size)))
        , scale_shift(chunk >= weight.block_size ? 0 : 2 * chunk == weight.block_size ? 1 : 2)
        , rest(weight.in_features % chunk)
    {
    }

    int64_t chunk;
    int64_t code_bytes;
    int scales_per_chunk; // 1, 2 or 4, of which the last chunk may have fewer
    int scale_shift;      // of a chunk's index, where one scale serves 2 or 4 chunks
    int64_t rest;         // elements of the last chunk, where it is not whole
};

// kUnpacked: codes of 4 bits lie as bytes, a chunk's low halves first.
template <int kBits, bool kUnpacked>
inline Simd::Ints dot_chunk(Bytes codes, int8_t const* values, Simd::Ints sum)
{
    constexpr int kVector = 4 * Simd::kWidth;
    if constexpr (kBits == 8)
    {
        return Simd::dot(codes, values, sum);
    }
    else if constexpr (kUnpacked)
    {
        return Simd::dot(codes + kVector, values + kVector, Simd::dot(codes, values, sum));
    }
    else
    {
        return Simd::dot_halves(codes, values, sum);
    }
}

// Zero points of a chunk, less the default one, spread over the lanes.
inline Simd::Vector zero_points(
    PackedWeight const& weight, int64_t out, int64_t block, int count, Simd::Spread const& spread)
{
    float values[4] = {};
    for (int i = 0; i < count; ++i)
    {
        values[i] = static_cast<float>(weight.zero_point(out, block + i) - weight.default_zero_point());
    }
    return Simd::spread(Float32{}, reinterpret_cast<Bytes>(values), spread);
}

template <typename Scale, int kBits, bool kZeroPoints, bool kUnpacked, int kRows, int kColumns>
inline void rounded_tile(
    Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, int64_t row, Columns const& columns)
{
    Layout const layout(weight);
    Simd::Vector acc[kRows][kOuts];
    for (int r = 0; r < kRows; ++r)
    {
        for (int c = 0; c < kOuts; ++c)
        {
            acc[r][c] = Simd::zero();
        }
    }
    int64_t const code_bytes = kUnpacked ? layout.chunk : layout.code_bytes;
    Bytes scale_rows[kColumns];
    for (int c = 0; c < kColumns; ++c)
    {
        scale_rows[c] = weight.scales + (columns.out + c * columns.stride) * weight.blocks() * Scale::kBytes;
    }
    auto const add_chunk = [&](int64_t chunk, Bytes const (&codes)[kColumns], int count, Simd::Spread const& spread) {
        int64_t const block = (chunk >> layout.scale_shift) * layout.scales_per_chunk;
        Simd::Vector scales[kColumns];
        for (int c = 0; c < kColumns; ++c)
        {
            scales[c] = Simd::spread(Scale{}, scale_rows[c] + block * Scale::kBytes, spread);
        }
        for (int r = 0; r < kRows; ++r)
        {
            int64_t const place = (row + r) * rounded.chunks + chunk;
            int8_t const* const values = rounded.values + place * layout.chunk;
            Simd::Ints const offset = Simd::load_ints(rounded.offsets + place * Simd::kWidth);
            Simd::Vector const scale = Simd::load(rounded.scales + place * Simd::kWidth);
            for (int c = 0; c < kColumns; ++c)
            {
                Simd::Vector sum
                    = Simd::to_floats(dot_chunk<kBits, kUnpacked>(codes[c], values, offset));
                if (kZeroPoints)
                {
                    Simd::Vector const points
                        = zero_points(weight, columns.out + c * columns.stride, block, count, spread);
                    Simd::Vector const values_sum = Simd::load(rounded.sums + place * Simd::kWidth);
                    sum = Simd::subtract_product(points, values_sum, sum);
                }
                acc[r][c] = Simd::fma(sum, Simd::multiply(scale, scales[c]), acc[r][c]);
            }
        }
    };
    int64_t const whole = weight.in_features / layout.chunk;
    Simd::Spread const whole_spread(layout.scales_per_chunk, layout.scales_per_chunk);
    Bytes codes[kColumns];
    for (int64_t chunk = 0; chunk < whole; ++chunk)
    {
        for (int c = 0; c < kColumns; ++c)
        {
            codes[c] = columns.codes + c * columns.code_stride + chunk * code_bytes;
        }
        add_chunk(chunk, codes, layout.scales_per_chunk, whole_spread);
    }
    if (layout.rest != 0)
    {
        // The activations beyond the end are zero, so that any codes do; but none may be read there.
        unsigned char padded[kColumns][kMaxChunk] = {};
        for (int c = 0; c < kColumns; ++c)
        {
            Bytes const source = columns.codes + c * columns.code_stride + whole * code_bytes;
            int64_t const bytes = kUnpacked ? layout.chunk : layout.rest * kBits / 8;
            std::memcpy(padded[c], source, static_cast<size_t>(bytes));
            codes[c] = padded[c];
        }
        int64_t const left = (layout.rest + weight.block_size - 1) / weight.block_size;
        int const count = static_cast<int>(std::min<int64_t>(left, layout.scales_per_chunk));
        add_chunk(whole, codes, count, Simd::Spread(layout.scales_per_chunk, count));
    }
    for (int r = 0; r < kRows; ++r)
    {
        float sums[1][kOuts];
        Simd::sum4(acc[r], sums[0]);
        add_sums(linear, row + r, columns.out, columns.stride, kColumns, true, true, sums);
    }
}

// rounded_tile for `rows` of 1 .. kRoundedRows and one or four columns.
template <typename Scale, int kBits, bool kZeroPoints, bool kUnpacked, int kRows = kRoundedRows>
inline void rounded_rows(Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, int64_t row,
    int64_t rows, Columns const& columns)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            rounded_rows<Scale, kBits, kZeroPoints, kUnpacked, kRows - 1>(linear, weight, rounded, row, rows, columns);
            return;
        }
    }
    if (columns.count == kOuts)
    {
        rounded_tile<Scale, kBits, kZeroPoints, kUnpacked, kRows, kOuts>(linear, weight, rounded, row, columns);
    }
    else
    {
        rounded_tile<Scale, kBits, kZeroPoints, kUnpacked, kRows, 1>(linear, weight, rounded, row, columns);
    }
}

// Few rows: codes straight into registers, four streams as in linear_kernel.h.
template <typename Scale, int kBits, bool kZeroPoints>
void rounded_direct(
    Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, LinearTask const& task)
{
    int64_t const stride = weight.code_stride();
    int64_t const rows = task.last_row - task.first_row;
    int64_t const groups = (rows + kRoundedRows - 1) / kRoundedRows; // of nearly equal size
    auto const run = [&](int64_t out, int64_t out_stride, int64_t count) {
        for (int64_t group = 0; group < groups; ++group)
        {
            int64_t const row = task.first_row + group * rows / groups;
            int64_t const last = task.first_row + (group + 1) * rows / groups;
            rounded_rows<Scale, kBits, kZeroPoints, false>(linear, weight, rounded, row, last - row,
                {out, out_stride, count, weight.codes + out * stride, out_stride * stride});
        }
    };
    int64_t const quarter = (task.last_out - task.first_out) / kOuts;
    for (int64_t out = task.first_out; out < task.first_out + quarter; ++out)
    {
        run(out, quarter, kOuts);
    }
    for (int64_t out = task.first_out + quarter * kOuts; out < task.last_out; ++out)
    {
        run(out, 1, 1);
    }
}

// More rows: codes of 4 bits are unpacked once per task, a tile of outputs at a time.
template <typename Scale, int kBits, bool kZeroPoints>
void rounded_packed(
    Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, LinearTask const& task)
{
    constexpr bool kUnpack = kBits == 4;
    Layout const layout(weight);
    int64_t const stride = kUnpack ? rounded.chunks * layout.chunk : weight.code_stride();
    int64_t const rows = task.last_row - task.first_row;
    int64_t const groups = (rows + kRoundedRows - 1) / kRoundedRows;
    int64_t const outs = task.last_out - task.first_out;
    Bytes codes = weight.codes + task.first_out * weight.code_stride();
    if (kUnpack)
    {
        auto* const unpacked
            = static_cast<unsigned char*>(thread_scratch(Scratch::kWeights, static_cast<size_t>(outs * stride)));
        for (int64_t out = 0; out < outs; ++out)
        {
            Bytes const source = codes + out * weight.code_stride();
            unsigned char* const target = unpacked + out * stride;
            int64_t const whole = weight.in_features / layout.chunk;
            for (int64_t chunk = 0; chunk < whole; ++chunk)
            {
                Simd::unpack_halves(source + chunk * layout.code_bytes, target + chunk * layout.chunk);
            }
            if (layout.rest != 0)
            {
                unsigned char padded[kMaxChunk] = {};
                std::memcpy(padded, source + whole * layout.code_bytes, static_cast<size_t>(layout.rest / 2));
                Simd::unpack_halves(padded, target + whole * layout.chunk);
            }
        }
        codes = unpacked;
    }
    for (int64_t group = 0; group < groups; ++group)
    {
        int64_t const row = task.first_row + group * rows / groups;
        int64_t const count = task.first_row + (group + 1) * rows / groups - row;
        for (int64_t out = 0; out < outs;)
        {
            int64_t const columns = outs - out >= kOuts ? kOuts : 1;
            rounded_rows<Scale, kBits, kZeroPoints, kUnpack>(linear, weight, rounded, row, count,
                {task.first_out + out, 1, columns, codes + out * stride, stride});
            out += columns;
        }
    }
}

template <typename Scale, int kBits, bool kZeroPoints>
void by_rows(Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, LinearTask const& task)
{
    auto const run = linear.rows <= kDirectRoundedRows ? rounded_direct<Scale, kBits, kZeroPoints>
                                                                     : rounded_packed<Scale, kBits, kZeroPoints>;
    run(linear, weight, rounded, task);
}

template <typename Scale, int kBits>
void by_zero_points(
    Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, LinearTask const& task)
{
    auto const run = weight.zero_points != nullptr ? by_rows<Scale, kBits, true> : by_rows<Scale, kBits, false>;
    run(linear, weight, rounded, task);
}

void multiply_rounded(
    Linear const& linear, PackedWeight const& weight, RoundedRows const& rounded, LinearTask const& task)
{
    bool const half = weight.scale_dtype == Q2EXPORT_FLOAT16;
    auto const run = weight.bits == 4 ? (half ? by_zero_points<Float16, 4> : by_zero_points<Float32, 4>)
                                      : (half ? by_zero_points<Float16, 8> : by_zero_points<Float32, 8>);
    run(linear, weight, rounded, task);
}

// Weights of a row, `length` from element `start` on, into a panel; the last vector is filled up with zeros.
inline void dequantize(PackedWeight const& weight, int64_t out, int64_t start, int64_t length, float* target)
{
    Bytes const row = weight.codes + out * weight.code_stride();
    int64_t const whole = (length + Simd::kWidth - 1) / Simd::kWidth * Simd::kWidth;
    for (int64_t k = 0; k < length;)
    {
        int64_t const block = (start + k) / weight.block_size;
        int64_t const end = std::min(length, (block + 1) * weight.block_size - start);
        float const scale = weight.scale(out, block);
        int32_t const zero_point = weight.zero_point(out, block);
        for (; k < end; ++k)
        {
            int64_t const element = start + k;
            int32_t const code = weight.bits == 8 ? row[element] : (row[element / 2] >> (element % 2 * 4)) & 15;
            target[panel_offset(k)] = static_cast<float>(code - zero_point) * scale;
        }
    }
    for (int64_t k = length; k < whole; ++k)
    {
        target[panel_offset(k)] = 0.0f;
    }
}

void multiply_exact(Linear const& linear, PackedWeight const& weight, LinearTask const& task)
{
    multiply_packed(linear, task, [&](int64_t out, int64_t start, int64_t length, float* target) {
        dequantize(weight, out, start, length, target);
    });
}

constexpr QuantizedLinearKernels kKernels{kDirectRoundedRows, rounded_bytes, place, round_row, multiply_rounded, multiply_exact};

} // namespace
} // namespace q2export::cpu
