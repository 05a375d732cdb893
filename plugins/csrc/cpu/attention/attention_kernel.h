// Attention over one block of keys, for the vectors of one instruction set; included by one source per set.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/attention.h"
#include "linear/matmul.h"
#include "simd/exponential.h"

namespace q2export::cpu
{
namespace
{

constexpr float kNothing = -std::numeric_limits<float>::infinity(); // the largest of no scores
constexpr int kMaxHeadDim = 256;

template <typename Body>
inline void by_dtype(q2export_dtype dtype, Body const& body)
{
    switch (dtype)
    {
    case Q2EXPORT_FLOAT16: body(Float16{}); break;
    case Q2EXPORT_BFLOAT16: body(BFloat16{}); break;
    default: body(Float32{}); break;
    }
}

// Half-split rotation, times `factor`; cosines and sines of head_dim / 2 angles, null for none.
inline void rotate(float const* x, float const* cosines, float const* sines, int64_t half, float factor, float* y)
{
    for (int64_t i = 0; i < half; ++i)
    {
        float const a = x[i];
        float const b = x[half + i];
        float const cosine = cosines == nullptr ? 1.0f : cosines[i];
        float const sine = sines == nullptr ? 0.0f : sines[i];
        y[i] = (a * cosine - b * sine) * factor;
        y[half + i] = (b * cosine + a * sine) * factor;
    }
}

template <typename Element>
inline void store_elements(float const* source, int64_t count, unsigned char* target)
{
    for (int64_t i = 0; i < count; ++i)
    {
        Element::write(target + i * Element::kBytes, source[i]);
    }
}

void append(Attention const& attention, int64_t row, int64_t token)
{
    q2export_cpu_attention_desc const& desc = attention.desc;
    int64_t const dim = desc.head_dim;
    int64_t const half = dim / 2;
    int64_t const position = attention.past_lengths[row] + token;
    float cosines[kMaxHeadDim / 2];
    float sines[kMaxHeadDim / 2];
    bool const rotates = attention.inv_freq != nullptr;
    for (int64_t i = 0; rotates && i < half; ++i)
    {
        float const angle = static_cast<float>(position) * attention.inv_freq[i];
        cosines[i] = std::cos(angle) * desc.attention_factor;
        sines[i] = std::sin(angle) * desc.attention_factor;
    }
    float const* const cosine = rotates ? cosines : nullptr;
    float const* const sine = rotates ? sines : nullptr;
    int64_t const place = row * desc.sequence + token;
    for (int64_t head = 0; head < desc.num_heads; ++head)
    {
        int64_t const kv_head = head / attention.group();
        float* const target = attention.rotated
            + (((row * desc.num_kv_heads + kv_head) * desc.sequence + token) * attention.group()
                  + head % attention.group())
                * dim;
        rotate(attention.query + (place * desc.num_heads + head) * dim, cosine, sine, half, desc.scale, target);
    }
    by_dtype(desc.cache_dtype, [&](auto element) {
        using Element = decltype(element);
        for (int64_t kv_head = 0; kv_head < desc.num_kv_heads; ++kv_head)
        {
            int64_t const source = (place * desc.num_kv_heads + kv_head) * dim;
            int64_t const target = attention.cache_offset(row, kv_head, position);
            float rotated[kMaxHeadDim];
            rotate(attention.key + source, cosine, sine, half, 1.0f, rotated);
            store_elements<Element>(rotated, dim, attention.key_cache + target);
            store_elements<Element>(attention.value + source, dim, attention.value_cache + target);
        }
    });
}

// A block of keys or values as floats: in place, or widened into `memory`, rows padded with zeros to whole vectors.
struct Block
{
    float const* data;
    int64_t stride;
};

inline Block block_of(Attention const& attention, unsigned char const* cache, int64_t count, float* memory)
{
    int64_t const dim = attention.desc.head_dim;
    int64_t const padded = (dim + Simd::kWidth - 1) / Simd::kWidth * Simd::kWidth;
    if (attention.desc.cache_dtype == Q2EXPORT_FLOAT32 && padded == dim)
    {
        return {reinterpret_cast<float const*>(cache), dim};
    }
    by_dtype(attention.desc.cache_dtype, [&](auto element) {
        using Element = decltype(element);
        for (int64_t key = 0; key < count; ++key)
        {
            Bytes const source = cache + key * dim * Element::kBytes;
            float* const target = memory + key * padded;
            int64_t i = 0;
            for (; i + Simd::kWidth <= dim; i += Simd::kWidth)
            {
                Simd::store(target + i, Simd::widen(element, source + i * Element::kBytes));
            }
            if (i < dim)
            {
                Simd::store(target + i,
                    Simd::widen_first(element, source + i * Element::kBytes, static_cast<int>(dim - i)));
            }
        }
    });
    return {memory, padded};
}

// Scores of `kRows` queries against all keys of a block.
template <int kRows = Simd::kTileRows>
inline void score_rows(
    float const* queries, int64_t rows, int64_t dim, Block const& keys, int64_t count, float* scores)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            score_rows<kRows - 1>(queries, rows, dim, keys, count, scores);
            return;
        }
    }
    for (int64_t key = 0; key < count;)
    {
        float sums[kRows][kOuts];
        bool const whole = count - key >= kOuts;
        Bytes const source = reinterpret_cast<Bytes>(keys.data + key * keys.stride);
        int64_t const stride = keys.stride * Float32::kBytes;
        if (whole)
        {
            multiply_tile<Widened<Float32>, kRows, kOuts>(queries, dim, source, stride, dim, sums);
        }
        else
        {
            multiply_tile<Widened<Float32>, kRows, 1>(queries, dim, source, stride, dim, sums);
        }
        for (int row = 0; row < kRows; ++row)
        {
            std::copy(sums[row], sums[row] + (whole ? kOuts : 1), scores + row * kKeyBlock + key);
        }
        key += whole ? kOuts : 1;
    }
}

// Sums of values weighted with the exponentials of `kRows` queries, key after key. Keys that a query does not see weigh
// zero, which leaves its sums as they are.
template <int kRows = 4>
inline void weigh_rows(float const* weights, int64_t rows, Block const& values, int64_t count, int64_t dim, float* sums,
    int64_t sums_stride)
{
    if constexpr (kRows > 1)
    {
        if (rows < kRows)
        {
            weigh_rows<kRows - 1>(weights, rows, values, count, dim, sums, sums_stride);
            return;
        }
    }
    for (int64_t start = 0; start < dim; start += Simd::kWidth)
    {
        Simd::Vector acc[kRows];
        for (int row = 0; row < kRows; ++row)
        {
            acc[row] = Simd::zero();
        }
        for (int64_t key = 0; key < count; ++key)
        {
            Simd::Vector const value = Simd::load(values.data + key * values.stride + start);
            for (int row = 0; row < kRows; ++row)
            {
                acc[row] = Simd::fma(Simd::broadcast(weights[row * kKeyBlock + key]), value, acc[row]);
            }
        }
        int const lanes = static_cast<int>(std::min<int64_t>(Simd::kWidth, dim - start));
        for (int row = 0; row < kRows; ++row)
        {
            Simd::store_first(sums + row * sums_stride + start, acc[row], lanes);
        }
    }
}

// Turns a query's scores into exponentials, zero outside [first, last), and returns the largest score and their sum.
inline void exponentials(float* scores, int64_t count, int64_t first, int64_t last, float* largest, float* sum)
{
    float highest = kNothing;
    for (int64_t key = first; key < last; ++key)
    {
        highest = std::max(highest, scores[key]);
    }
    *largest = highest;
    *sum = 0.0f;
    if (first >= last)
    {
        std::fill(scores, scores + count, 0.0f);
        return;
    }
    std::fill(scores, scores + first, kNothing);
    std::fill(scores + last, scores + kKeyBlock, kNothing); // whole vectors
    Simd::Vector const maximum = Simd::broadcast(highest);
    Simd::Vector total = Simd::zero();
    for (int64_t key = 0; key < kKeyBlock; key += Simd::kWidth)
    {
        Simd::Vector const value = exponential(Simd::subtract(Simd::load(scores + key), maximum));
        Simd::store(scores + key, value);
        total = Simd::add(total, value);
    }
    Simd::Vector const four[4] = {total, total, total, total};
    float sums[4];
    Simd::sum4(four, sums);
    *sum = sums[0];
}

void attend_block(Attention const& attention, Queries const& queries, int64_t block, float* part)
{
    q2export_cpu_attention_desc const& desc = attention.desc;
    int64_t const dim = desc.head_dim;
    int64_t const group = attention.group();
    int64_t const rows = queries.count * group;
    int64_t const past = attention.past_lengths[queries.row];
    int64_t const start = block * kKeyBlock;
    int64_t const count = std::min(kKeyBlock, past + queries.token + queries.count - start);
    int64_t const padded = (dim + Simd::kWidth - 1) / Simd::kWidth * Simd::kWidth;
    int64_t const floats = rows * kKeyBlock + 2 * kKeyBlock * padded;
    float* const scores
        = static_cast<float*>(thread_scratch(Scratch::kKeys, static_cast<size_t>(floats) * sizeof(float)));
    int64_t const offset = attention.cache_offset(queries.row, queries.kv_head, start);
    float* const memory = scores + rows * kKeyBlock;
    Block const keys = block_of(attention, attention.key_cache + offset, count, memory);
    Block const values = block_of(attention, attention.value_cache + offset, count, memory + kKeyBlock * padded);
    float const* const query = attention.rotated_rows(queries.row, queries.kv_head, queries.token);
    int64_t const groups = (rows + Simd::kTileRows - 1) / Simd::kTileRows;
    for (int64_t i = 0; i < groups; ++i)
    {
        int64_t const row = i * rows / groups;
        score_rows(query + row * dim, (i + 1) * rows / groups - row, dim, keys, count, scores + row * kKeyBlock);
    }
    for (int64_t row = 0; row < rows; ++row)
    {
        int64_t const position = past + queries.token + row / group - start; // of the query, in the block
        int64_t const last = std::min(count, position + 1);
        int64_t const oldest = desc.sliding_window == 0 ? 0 : position - desc.sliding_window + 1;
        float* const own = part + row * (dim + 2);
        exponentials(scores + row * kKeyBlock, count, std::max<int64_t>(0, oldest), last, &own[0], &own[1]);
    }
    for (int64_t row = 0; row < rows; row += 4)
    {
        weigh_rows(scores + row * kKeyBlock, std::min<int64_t>(4, rows - row), values, count, dim,
            part + row * (dim + 2) + 2, dim + 2);
    }
}

void merge(Attention const& attention, Queries const& queries, float const* part, float* merged)
{
    int64_t const stride = attention.desc.head_dim + 2;
    for (int64_t row = 0; row < queries.count * attention.group(); ++row)
    {
        float const* const from = part + row * stride;
        float* const to = merged + row * stride;
        if (from[0] == kNothing)
        {
            continue;
        }
        float const largest = std::max(from[0], to[0]);
        float const keep = to[0] == kNothing ? 0.0f : std::exp(to[0] - largest);
        float const take = std::exp(from[0] - largest);
        to[0] = largest;
        for (int64_t i = 1; i < stride; ++i)
        {
            to[i] = to[i] * keep + from[i] * take;
        }
    }
}

void finish(Attention const& attention, Queries const& queries, float const* merged)
{
    q2export_cpu_attention_desc const& desc = attention.desc;
    int64_t const dim = desc.head_dim;
    int64_t const group = attention.group();
    for (int64_t row = 0; row < queries.count * group; ++row)
    {
        float const* const from = merged + row * (dim + 2);
        int64_t const token = queries.row * desc.sequence + queries.token + row / group;
        float* const target
            = attention.output + (token * desc.num_heads + queries.kv_head * group + row % group) * dim;
        for (int64_t i = 0; i < dim; ++i)
        {
            target[i] = from[2 + i] / from[1];
        }
    }
}

constexpr AttentionKernels kKernels{append, attend_block, merge, finish};

} // namespace
} // namespace q2export::cpu
