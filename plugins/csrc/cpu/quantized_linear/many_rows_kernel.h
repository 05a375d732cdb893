// More rows: outputs in lanes; included by one source per instruction set.
//
// The codes of two vectors of outputs are unpacked into the thread's scratch, one byte each and four of a lane together,
// and multiply panels of kPanelRows rows, whose values are broadcast four at a time. A step is four elements of a block.
#pragma once

#include <algorithm>

#include "common/scratch.h"
#include "common/unrolled.h"
#include "linear/matmul.h"
#include "quantized_linear/quantized_linear.h"

namespace q2export::cpu
{
namespace
{

constexpr int64_t kPanelRows = Integers::kPanelRows;
constexpr int kPanelVectors = 2;
constexpr int64_t kPanelOuts = kPanelVectors * Simd::kWidth;
constexpr int64_t kStepBytes = 4 * kPanelOuts; // of weights
constexpr int64_t kUnpackedPanels = 2; // at a time
constexpr int kResidues = 4; // sums of blocks with the same index mod 4

inline int64_t panel_count(int64_t rows)
{
    return (rows + kPanelRows - 1) / kPanelRows;
}

// Places: values [panels, steps, kPanelRows, 4], of 4 bits the even elements of eight are a step, then the odd ones;
// scales, sums and offsets [panels, blocks, kPanelRows]. Offsets are minus the default zero point times the sum.
inline void arrange_panel(PackedWeight const& weight, RoundedRow const& row, RoundedRows const& rounded, int64_t index)
{
    int64_t const panel = index / rounded.group_rows;
    int64_t const place = index % rounded.group_rows;
    int8_t* values = rounded.values + panel * weight.in_features * kPanelRows + place * 4;
    constexpr int64_t kStep = 4 * kPanelRows;
    for (int64_t k = 0; k < weight.in_features; k += 8, values += 2 * kStep)
    {
        int8_t const* const source = row.values + k;
        for (int i = 0; i < 4; ++i)
        {
            values[i] = weight.bits == 4 ? source[2 * i] : source[i];
            values[kStep + i] = weight.bits == 4 ? source[2 * i + 1] : source[4 + i];
        }
    }
    for (int64_t block = 0; block < weight.blocks(); ++block)
    {
        int64_t const at = (panel * weight.blocks() + block) * kPanelRows + place;
        rounded.scales[at] = row.scales[block];
        rounded.sums[at] = row.sums[block];
        rounded.offsets[at] = -weight.default_zero_point() * static_cast<int32_t>(row.sums[block]);
    }
}

// The weights of kPanelOuts outputs. Outputs beyond the matrix have scales of zero.
struct WeightPanel
{
    WeightPanel(PackedWeight const& weight, void* memory)
        : scales(static_cast<float*>(memory))
        , zero_points(scales + weight.blocks() * kPanelOuts)
        , bias(zero_points + weight.blocks() * kPanelOuts)
        , codes(reinterpret_cast<unsigned char*>(bias + kPanelOuts))
    {
    }

    static int64_t bytes(PackedWeight const& weight)
    {
        return ((2 * weight.blocks() + 1) * Float32::kBytes + weight.in_features) * kPanelOuts;
    }

    float* scales;        // [blocks, kPanelOuts]
    float* zero_points;   // [blocks, kPanelOuts]; only where the weight has some
    float* bias;          // [kPanelOuts]; only where there is one
    unsigned char* codes; // [steps, kPanelOuts, 4]
};

// Writes two steps of 4 bits, one of 8.
template <int kBits>
inline void store_steps(Integers::Vector const& codes, unsigned char* target)
{
    Integers::store(target, kBits == 4 ? Integers::low_halves(codes) : codes);
    if constexpr (kBits == 4)
    {
        Integers::store(target + kStepBytes, Integers::high_halves(codes));
    }
}

// How many outputs ahead memory is called for: beyond those that are unpacked together.
constexpr int64_t kAhead = kUnpackedPanels * kPanelOuts;

// Codes of up to a vector of outputs.
template <int kBits>
void unpack_codes(PackedWeight const& weight, int64_t out, int64_t outs, unsigned char* target)
{
    constexpr int64_t kBytes = 4 * Simd::kWidth;
    constexpr int64_t kTarget = 8 / kBits * kStepBytes; // of four bytes of each output
    int64_t const stride = weight.code_stride();
    Bytes const source = weight.codes + out * stride;
    int64_t const next = out + kAhead + Simd::kWidth <= weight.out_features ? kAhead * stride : 0;
    int64_t start = 0;
    Integers::Vector lanes[Simd::kWidth];
    for (; outs == Simd::kWidth && start + kBytes <= stride; start += kBytes)
    {
        unrolled<Simd::kWidth>([&](auto i) {
            Bytes const row = source + i * stride + start;
            __builtin_prefetch(row + next, 0, 2);
            lanes[i] = Integers::load(row);
        });
        Integers::transpose(lanes);
        unrolled<Simd::kWidth>([&](auto word) { store_steps<kBits>(lanes[word], target + word * kTarget); });
        target += Simd::kWidth * kTarget;
    }
    for (; start < stride; start += kBytes)
    {
        int64_t const bytes = std::min(kBytes, stride - start);
        for (int64_t i = 0; i < Simd::kWidth; ++i)
        {
            unsigned char padded[kBytes] = {};
            if (i < outs)
            {
                std::memcpy(padded, source + i * stride + start, static_cast<size_t>(bytes));
            }
            lanes[i] = Integers::load(padded);
        }
        Integers::transpose(lanes);
        for (int64_t word = 0; word < bytes / 4; ++word, target += kTarget)
        {
            store_steps<kBits>(lanes[word], target);
        }
    }
}

// Scales of up to a vector of outputs.
inline void unpack_scales(PackedWeight const& weight, int64_t out, int64_t outs, float* target)
{
    int64_t const blocks = weight.blocks();
    int64_t const next = out + kAhead + Simd::kWidth <= weight.out_features ? kAhead * weight.scale_stride() : 0;
    for (int64_t first = 0; first < blocks; first += Simd::kWidth)
    {
        int64_t const count = std::min<int64_t>(Simd::kWidth, blocks - first);
        Integers::Vector lanes[Simd::kWidth];
        for (int64_t i = 0; i < Simd::kWidth; ++i)
        {
            Bytes const row = weight.scales + (out + std::min(i, outs - 1)) * weight.scale_stride() + first * Float16::kBytes;
            __builtin_prefetch(row + next, 0, 2);
            lanes[i] = i >= outs ? Integers::zero()
                                 : Integers::from_floats(Simd::widen_first(Float16{}, row, static_cast<int>(count)));
        }
        Integers::transpose(lanes);
        for (int64_t i = 0; i < count; ++i)
        {
            Integers::store(target + (first + i) * kPanelOuts, lanes[i]);
        }
    }
}

inline void unpack(QuantizedLinear const& call, int64_t first, int64_t outs, WeightPanel const& panel)
{
    PackedWeight const& weight = call.weight;
    for (int64_t vector = 0; vector < kPanelVectors; ++vector)
    {
        int64_t const skipped = vector * Simd::kWidth;
        int64_t const out = first + skipped;
        int64_t const count = std::clamp<int64_t>(outs - skipped, 0, Simd::kWidth);
        (weight.bits == 4 ? unpack_codes<4> : unpack_codes<8>)(weight, out, count, panel.codes + 4 * skipped);
        unpack_scales(weight, out, count, panel.scales + skipped);
    }
    for (int64_t i = 0; i < kPanelOuts; ++i)
    {
        int64_t const out = first + std::min(i, outs - 1);
        panel.bias[i] = read_bias(call.linear, out);
        for (int64_t block = 0; weight.zero_points != nullptr && block < weight.blocks(); ++block)
        {
            panel.zero_points[block * kPanelOuts + i] = static_cast<float>(weight.zero_point(out, block));
        }
    }
}

// kRows rows of a panel times kPanelOuts outputs.
template <bool kZeroPoints, int kBits, int kRows>
void many_rows_tile(
    QuantizedLinear const& call, int64_t row, int64_t out, int64_t outs, WeightPanel const& weights)
{
    int64_t const blocks = call.weight.blocks();
    int64_t const steps = call.weight.block_size / 4;
    int64_t const group = row / call.rounded.group_rows;
    int8_t const* values = call.rounded.values + group * call.weight.in_features * kPanelRows;
    Bytes codes = weights.codes;
    float* const output = call.linear.output + row * call.weight.out_features + out;
    for (int r = 0; r < kRows; ++r)
    {
        // Else the stores of the end wait for memory, and those of the next tile's sums for them.
        __builtin_prefetch(output + r * call.weight.out_features, 1, 3);
        __builtin_prefetch(output + r * call.weight.out_features + std::min<int64_t>(outs - 1, Simd::kWidth), 1, 3);
    }
    Simd::Vector sums[kResidues][kRows][kPanelVectors];
    for (auto& of_residue : sums)
    {
        unrolled<kRows>([&](auto r) { std::fill_n(of_residue[r], kPanelVectors, Simd::zero()); });
    }
    for (int64_t block = 0; block < blocks; ++block)
    {
        int64_t const place = (group * blocks + block) * kPanelRows;
        Integers::Vector acc[kRows][kPanelVectors];
        unrolled<kRows>([&](auto r) {
            acc[r][0] = kZeroPoints ? Integers::zero() : Integers::broadcast(call.rounded.offsets + place + r);
            acc[r][1] = acc[r][0];
        });
        for (int64_t step = 0; step < steps; ++step)
        {
            Integers::Vector const first = Integers::load(codes);
            Integers::Vector const second = Integers::load(codes + 4 * Simd::kWidth);
            unrolled<kRows>([&](auto r) {
                Integers::Vector const x = Integers::broadcast(values + 4 * r);
                acc[r][0] = Integers::dot<kBits>(first, x, acc[r][0]);
                acc[r][1] = Integers::dot<kBits>(second, x, acc[r][1]);
            });
            codes += kStepBytes;
            values += 4 * kPanelRows;
        }
        unrolled<kPanelVectors>([&](auto vector) {
            int64_t const at = block * kPanelOuts + vector * Simd::kWidth;
            Simd::Vector const scale = Simd::load(weights.scales + at);
            unrolled<kRows>([&](auto r) {
                Simd::Vector sum = Integers::to_floats(acc[r][vector]);
                if constexpr (kZeroPoints)
                {
                    sum = Simd::subtract_product(
                        Simd::load(weights.zero_points + at), Simd::broadcast(call.rounded.sums[place + r]), sum);
                }
                Simd::Vector& total = sums[block % kResidues][r][vector];
                total = Simd::fma(sum, Simd::multiply(Simd::broadcast(call.rounded.scales[place + r]), scale), total);
            });
        });
    }
    for (int r = 0; r < kRows; ++r)
    {
        float* const target = output + r * call.weight.out_features;
        for (int vector = 0; vector < kPanelVectors; ++vector)
        {
            Simd::Vector total = Simd::add(Simd::add(sums[0][r][vector], sums[2][r][vector]),
                Simd::add(sums[1][r][vector], sums[3][r][vector]));
            int64_t const first = vector * Simd::kWidth;
            if (call.linear.bias != nullptr)
            {
                total = Simd::add(total, Simd::load(weights.bias + first));
            }
            if (outs > first)
            {
                int64_t const count = std::min<int64_t>(Simd::kWidth, outs - first);
                Simd::store_first(target + first, total, static_cast<int>(count));
            }
        }
    }
}

// many_rows_tile for `rows` of 1 .. kPanelRows.
template <bool kZeroPoints, int kBits, int kRows = static_cast<int>(kPanelRows)>
inline void many_rows_panel(QuantizedLinear const& call, int64_t row, int64_t rows, int64_t out, int64_t outs,
    WeightPanel const& weights)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            many_rows_panel<kZeroPoints, kBits, kRows - 1>(call, row, rows, out, outs, weights);
            return;
        }
    }
    many_rows_tile<kZeroPoints, kBits, kRows>(call, row, out, outs, weights);
}

inline void multiply_many(QuantizedLinear const& call, LinearTask const& task)
{
    bool const with_points = call.weight.zero_points != nullptr;
    auto const multiply = call.weight.bits == 4 ? (with_points ? many_rows_panel<true, 4> : many_rows_panel<false, 4>)
                                                : (with_points ? many_rows_panel<true, 8> : many_rows_panel<false, 8>);
    int64_t const panel_bytes = WeightPanel::bytes(call.weight);
    auto* const memory = static_cast<unsigned char*>(
        thread_scratch(Scratch::kWeights, static_cast<size_t>(kUnpackedPanels * panel_bytes)));
    for (int64_t first = task.first_out; first < task.last_out; first += kUnpackedPanels * kPanelOuts)
    {
        auto const for_panels = [&](auto const& body) {
            int64_t const last = std::min(first + kUnpackedPanels * kPanelOuts, task.last_out);
            unsigned char* panel = memory;
            for (int64_t out = first; out < last; out += kPanelOuts, panel += panel_bytes)
            {
                body(out, std::min(kPanelOuts, last - out), WeightPanel(call.weight, panel));
            }
        };
        for_panels([&](int64_t out, int64_t outs, WeightPanel const& panel) { unpack(call, out, outs, panel); });
        for (int64_t row = task.first_row; row < task.last_row; row += call.rounded.group_rows)
        {
            int64_t const rows = std::min(call.rounded.group_rows, task.last_row - row);
            for_panels([&](int64_t out, int64_t outs, WeightPanel const& panel) {
                multiply(call, row, rows, out, outs, panel);
            });
        }
    }
}

} // namespace
} // namespace q2export::cpu
