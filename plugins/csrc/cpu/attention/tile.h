// The two products of attention as register tiles. Scores: keys are lanes, and each is summed over head_dim from the
// first element to the last. Weighted values: head_dim is lanes, and keys are added from the oldest to the newest.
// Neither order depends on the tile, so that a query has the same bits alone and among others.
#pragma once

#include <algorithm>

#include "attention/attention.h"
#include "common/unrolled.h"

namespace q2export::cpu
{
namespace
{

constexpr int kTileVectors = 4;
constexpr int64_t kPanelKeys = kTileVectors * Simd::kWidth;
constexpr int kFewRows = 8; // queries whose sums fit the registers beside a square of keys
static_assert(kKeyBlock % kPanelKeys == 0, "a block of keys is whole panels");

// Calls body of a constant: `rows` of 1 .. kTileRows.
template <int kRows = Simd::kTileRows, typename Body>
inline void by_rows(int64_t rows, Body const& body)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            by_rows<kRows - 1>(rows, body);
            return;
        }
    }
    body(std::integral_constant<int, kRows>{});
}

// Elements of keys whose places in memory are `stride` elements apart: square[i] gets element i of each. Keys beyond
// `present` and elements beyond `width` are not read and are zeros.
template <typename Element>
inline void transposed(
    Element element, Bytes keys, int64_t stride, int64_t present, int64_t width, Simd::Vector (&square)[Simd::kWidth])
{
    if (present >= Simd::kWidth && width >= Simd::kWidth)
    {
        unrolled<Simd::kWidth>(
            [&](auto row) { square[row] = Simd::widen(element, keys + row * stride * Element::kBytes); });
    }
    else
    {
        int const first = static_cast<int>(std::min<int64_t>(Simd::kWidth, width));
        for (int row = 0; row < Simd::kWidth; ++row)
        {
            square[row] = row < present ? Simd::widen_first(element, keys + row * stride * Element::kBytes, first)
                                        : Simd::zero();
        }
    }
    transpose(square);
}

// Fetches a share of what follows a vector of keys, line after line: rows that are read side by side are no stream to
// the processor.
template <typename Element>
inline void fetch_next(Element, Bytes next, int64_t share)
{
    constexpr int64_t kBytes = Simd::kWidth * Simd::kWidth * Element::kBytes;
    for (int64_t line = 0; line < kBytes; line += 64)
    {
        __builtin_prefetch(next + share * kBytes + line);
    }
}

// Element i of key `key` of a panel is panel[i * kPanelKeys + key]. Nothing is read of keys beyond `count`; where they
// share a vector with others, they are zeros.
template <typename Element>
inline void transpose_keys(Element element, Bytes keys, int64_t count, int64_t dim, float* panel)
{
    for (int64_t key = 0; key < count; key += Simd::kWidth)
    {
        for (int64_t i = 0; i < dim; i += Simd::kWidth)
        {
            if (key + 2 * Simd::kWidth <= count)
            {
                fetch_next(element, keys + (key + Simd::kWidth) * dim * Element::kBytes, i / Simd::kWidth);
            }
            Simd::Vector square[Simd::kWidth];
            transposed(element, keys + (key * dim + i) * Element::kBytes, dim, count - key, dim - i, square);
            float* const target = panel + i * kPanelKeys + key;
            if (i + Simd::kWidth <= dim)
            {
                unrolled<Simd::kWidth>([&](auto row) { Simd::store(target + row * kPanelKeys, square[row]); });
            }
            else
            {
                for (int64_t row = 0; row < dim - i; ++row)
                {
                    Simd::store(target + row * kPanelKeys, square[row]);
                }
            }
        }
    }
}

// Scores of at most kFewRows queries against keys that nobody else wants: they go from their transposition straight into
// the products, and no panel is written to be read once. The order of sums is score_tile's.
template <int kRows, typename Element>
inline void score_few(Element element, float const* queries, Bytes keys, int64_t count, int64_t dim, float* scores)
{
    for (int64_t key = 0; key < count; key += Simd::kWidth)
    {
        Simd::Vector acc[kRows];
        unrolled<kRows>([&](auto row) { acc[row] = Simd::zero(); });
        for (int64_t i = 0; i < dim; i += Simd::kWidth)
        {
            if (key + 2 * Simd::kWidth <= count)
            {
                fetch_next(element, keys + (key + Simd::kWidth) * dim * Element::kBytes, i / Simd::kWidth);
            }
            Simd::Vector square[Simd::kWidth];
            transposed(element, keys + (key * dim + i) * Element::kBytes, dim, count - key, dim - i, square);
            auto const add = [&](auto column) {
                unrolled<kRows>([&](auto row) {
                    acc[row] = Simd::fma(Simd::broadcast(queries[row * dim + i + column]), square[column], acc[row]);
                });
            };
            if (i + Simd::kWidth <= dim)
            {
                unrolled<Simd::kWidth>(add);
            }
            else
            {
                for (int64_t column = 0; column < dim - i; ++column)
                {
                    add(column);
                }
            }
        }
        unrolled<kRows>([&](auto row) { Simd::store(scores + row * kKeyBlock + key, acc[row]); });
    }
}

// Values as floats, rows padded with zeros to whole vectors.
template <typename Element>
inline void widen_rows(Element element, Bytes source, int64_t count, int64_t dim, float* target)
{
    for (int64_t row = 0; row < count; ++row)
    {
        for (int64_t i = 0; i < dim; i += Simd::kWidth)
        {
            int64_t const rest = dim - i;
            Simd::store(target, rest >= Simd::kWidth
                    ? Simd::widen(element, source)
                    : Simd::widen_first(element, source, static_cast<int>(rest)));
            source += std::min<int64_t>(rest, Simd::kWidth) * Element::kBytes;
            target += Simd::kWidth;
        }
    }
}

// Scores of `kRows` queries against kVectors vectors of a panel's keys; a query's lie kKeyBlock behind the last one's.
template <int kRows, int kVectors>
inline void score_tile(float const* queries, int64_t dim, float const* panel, float* scores)
{
    Simd::Vector acc[kRows][kVectors];
    unrolled<kRows>([&](auto row) { unrolled<kVectors>([&](auto v) { acc[row][v] = Simd::zero(); }); });
    for (int64_t i = 0; i < dim; ++i)
    {
        Simd::Vector keys[kVectors];
        unrolled<kVectors>([&](auto v) { keys[v] = Simd::load(panel + i * kPanelKeys + v * Simd::kWidth); });
        unrolled<kRows>([&](auto row) {
            Simd::Vector const query = Simd::broadcast(queries[row * dim + i]);
            unrolled<kVectors>([&](auto v) { acc[row][v] = Simd::fma(query, keys[v], acc[row][v]); });
        });
    }
    unrolled<kRows>([&](auto row) {
        unrolled<kVectors>([&](auto v) { Simd::store(scores + row * kKeyBlock + v * Simd::kWidth, acc[row][v]); });
    });
}

// Scores of `rows` queries against keys [first, last) of a panel, and against what else lies in their vectors.
inline void score_panel(
    float const* queries, int64_t rows, int64_t dim, float const* panel, int64_t first, int64_t last, float* scores)
{
    by_rows(rows, [&](auto tile_rows) {
        int64_t key = first / Simd::kWidth * Simd::kWidth;
        if (key == 0 && last > kPanelKeys - Simd::kWidth)
        {
            score_tile<tile_rows, kTileVectors>(queries, dim, panel, scores);
            return;
        }
        for (; key < last; key += Simd::kWidth)
        {
            score_tile<tile_rows, 1>(queries, dim, panel + key, scores + key);
        }
    });
}

// Adds `count` values, weighted, to `kRows` queries' sums of kVectors vectors. Weights of a query lie kKeyBlock behind the
// last one's.
template <int kRows, int kVectors>
inline void weigh_tile(float const* weights, float const* values, int64_t values_stride, int64_t count, float* sums,
    int64_t sums_stride)
{
    Simd::Vector acc[kRows][kVectors];
    unrolled<kRows>([&](auto row) {
        unrolled<kVectors>([&](auto v) { acc[row][v] = Simd::load(sums + row * sums_stride + v * Simd::kWidth); });
    });
    for (int64_t key = 0; key < count; ++key)
    {
        Simd::Vector value[kVectors];
        unrolled<kVectors>([&](auto v) { value[v] = Simd::load(values + key * values_stride + v * Simd::kWidth); });
        unrolled<kRows>([&](auto row) {
            Simd::Vector const weight = Simd::broadcast(weights[row * kKeyBlock + key]);
            unrolled<kVectors>([&](auto v) { acc[row][v] = Simd::fma(weight, value[v], acc[row][v]); });
        });
    }
    unrolled<kRows>([&](auto row) {
        unrolled<kVectors>([&](auto v) { Simd::store(sums + row * sums_stride + v * Simd::kWidth, acc[row][v]); });
    });
}

// The same of whole rows: `width` floats, whole vectors.
inline void weigh_rows(float const* weights, int64_t rows, float const* values, int64_t width, int64_t count,
    float* sums, int64_t sums_stride)
{
    by_rows(rows, [&](auto tile_rows) {
        int64_t i = 0;
        for (; i + kPanelKeys <= width; i += kPanelKeys)
        {
            weigh_tile<tile_rows, kTileVectors>(weights, values + i, width, count, sums + i, sums_stride);
        }
        for (; i < width; i += Simd::kWidth)
        {
            weigh_tile<tile_rows, 1>(weights, values + i, width, count, sums + i, sums_stride);
        }
    });
}

} // namespace
} // namespace q2export::cpu
