// Attention over one block of keys, for the vectors of one instruction set; included by one source per set.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attention/attention.h"
#include "attention/key_block.h"
#include "common/scratch.h"
#include "simd/exponential.h"

namespace q2export::cpu
{
namespace
{

constexpr float kNothing = -std::numeric_limits<float>::infinity(); // the largest of no scores
constexpr int kMaxHeadDim = 256;

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

// Keys of a block that a query sees: [first, last).
struct Visible
{
    int64_t first;
    int64_t last;
};

// Turns the scores of the keys that a query sees into exponentials; returns the largest score and their sum.
inline void exponentials(float* scores, Visible const& visible, float* largest, float* sum)
{
    if (visible.first >= visible.last)
    {
        *largest = kNothing;
        *sum = 0.0f;
        return;
    }
    // Whole vectors; their lanes are those of the block, wherever the query's keys begin.
    int64_t const begin = visible.first / Simd::kWidth * Simd::kWidth;
    int64_t const end = (visible.last + Simd::kWidth - 1) / Simd::kWidth * Simd::kWidth;
    std::fill(scores + begin, scores + visible.first, kNothing);
    std::fill(scores + visible.last, scores + end, kNothing);
    Simd::Vector lanes = Simd::broadcast(kNothing);
    Simd::Vector numbers = Simd::zero(); // how many scores are no NaN, which comparisons and exponential() pass over
    for (int64_t key = begin; key < end; key += Simd::kWidth)
    {
        Simd::Vector const score = Simd::load(scores + key);
        lanes = Simd::maximum(lanes, score);
        numbers = Simd::add(numbers, Simd::where_at_least(score, score, Simd::broadcast(1.0f)));
    }
    float each[Simd::kWidth];
    Simd::store(each, lanes);
    *largest = *std::max_element(each, each + Simd::kWidth);
    Simd::store(each, numbers);
    if (std::accumulate(each, each + Simd::kWidth, 0.0f) != static_cast<float>(end - begin)
        || *largest == -kNothing)
    {
        *largest = std::numeric_limits<float>::quiet_NaN();
    }
    Simd::Vector const maximum = Simd::broadcast(*largest);
    Simd::Vector total = Simd::zero();
    for (int64_t key = begin; key < end; key += Simd::kWidth)
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

// Some query vectors of a task, at most kStripRows, and what they get of a block.
struct Strip
{
    float const* queries;
    int64_t rows;
    Visible const* visible; // of each; neither end ever falls
    float* scores;          // [rows, kKeyBlock]
    float* part;            // [rows, part_stride]
    int64_t part_stride;
};

constexpr int64_t kStripRows = 2 * Simd::kTileRows;

// Calls body(first row, rows) for the tiles of a strip, which are of nearly equal size.
template <typename Body>
inline void for_tiles(int64_t rows, Body const& body)
{
    int64_t const tiles = (rows + Simd::kTileRows - 1) / Simd::kTileRows;
    for (int64_t tile = 0; tile < tiles; ++tile)
    {
        int64_t const row = tile * rows / tiles;
        body(row, (tile + 1) * rows / tiles - row);
    }
}

// Adds the values of one panel, which begins at key `start`, to a tile of queries. No value is multiplied that a query
// does not see, be it infinite: keys that not all of them see, each adds alone.
inline void weigh_panel(
    Strip const& strip, int64_t row, int64_t rows, float const* values, int64_t start, int64_t width)
{
    Visible const* const visible = strip.visible + row;
    int64_t const shared = visible[rows - 1].first;
    int64_t const shared_end = std::max(shared, visible[0].last);
    auto const add = [&](int64_t from, int64_t count_rows, int64_t first, int64_t last) {
        first = std::max(first, start);
        last = std::min(last, start + kPanelKeys);
        if (first < last)
        {
            weigh_rows(strip.scores + (row + from) * kKeyBlock + first, count_rows, values + (first - start) * width,
                width, last - first, strip.part + (row + from) * strip.part_stride + 2, strip.part_stride);
        }
    };
    for (int64_t each = 0; each < rows; ++each)
    {
        add(each, 1, visible[each].first, std::min(shared, visible[each].last));
    }
    add(0, rows, shared, shared_end);
    for (int64_t each = 0; each < rows; ++each)
    {
        add(each, 1, shared_end, visible[each].last);
    }
}

inline void attend_strip(Strip const& strip, int64_t dim, KeyBlock& block)
{
    int64_t const first = strip.visible[0].first;
    int64_t const last = strip.visible[strip.rows - 1].last;
    int64_t const width = KeyBlock::padded(dim);
    for (int64_t row = 0; row < strip.rows; ++row)
    {
        std::fill(strip.part + row * strip.part_stride + 2, strip.part + (row + 1) * strip.part_stride, 0.0f);
    }
    for (int64_t panel = first / kPanelKeys; panel * kPanelKeys < last; ++panel)
    {
        if (strip.rows <= kFewRows && !block.keeps())
        {
            block.score_few_rows(strip.queries, strip.rows, panel, strip.scores);
            continue;
        }
        float const* const keys = block.keys(panel);
        int64_t const start = panel * kPanelKeys;
        for_tiles(strip.rows, [&](int64_t row, int64_t rows) {
            int64_t const begin = std::max<int64_t>(strip.visible[row].first - start, 0);
            int64_t const end = std::min(strip.visible[row + rows - 1].last - start, kPanelKeys);
            score_panel(
                strip.queries + row * dim, rows, dim, keys, begin, end, strip.scores + row * kKeyBlock + start);
        });
    }
    for (int64_t row = 0; row < strip.rows; ++row)
    {
        float* const own = strip.part + row * strip.part_stride;
        exponentials(strip.scores + row * kKeyBlock, strip.visible[row], &own[0], &own[1]);
    }
    for (int64_t panel = first / kPanelKeys; panel * kPanelKeys < last; ++panel)
    {
        float const* const values = block.values(panel);
        for_tiles(strip.rows, [&](int64_t row, int64_t rows) {
            weigh_panel(strip, row, rows, values, panel * kPanelKeys, width);
        });
    }
}

void attend_block(Attention const& attention, Queries const& queries, int64_t block, float* part)
{
    q2export_cpu_attention_desc const& desc = attention.desc;
    int64_t const dim = desc.head_dim;
    int64_t const group = attention.group();
    int64_t const rows = queries.count * group;
    int64_t const start = block * kKeyBlock;
    int64_t const position = attention.past_lengths[queries.row] + queries.token - start; // of the first query
    int64_t const count = std::min(kKeyBlock, position + queries.count);
    auto const sees = [&](int64_t row) {
        int64_t const own = position + row / group;
        int64_t const oldest = desc.sliding_window == 0 ? 0 : own - desc.sliding_window + 1;
        return Visible{std::clamp<int64_t>(oldest, 0, kKeyBlock), std::clamp<int64_t>(own + 1, 0, count)};
    };
    int64_t const floats = kStripRows * kKeyBlock + KeyBlock::memory_floats(dim);
    float* const scores
        = static_cast<float*>(thread_scratch(Scratch::kKeys, static_cast<size_t>(floats) * sizeof(float)));
    KeyBlock memory(attention, attention.cache_offset(queries.row, queries.kv_head, start), count, sees(0).first,
        rows > kStripRows, scores + kStripRows * kKeyBlock);
    float const* const query = attention.rotated_rows(queries.row, queries.kv_head, queries.token);
    int64_t const stride = part_stride(attention);
    for (int64_t row = 0; row < rows; row += kStripRows)
    {
        int64_t const strip_rows = std::min(kStripRows, rows - row);
        Visible visible[kStripRows];
        for (int64_t each = 0; each < strip_rows; ++each)
        {
            visible[each] = sees(row + each);
        }
        attend_strip({query + row * dim, strip_rows, visible, scores, part + row * stride, stride}, dim, memory);
    }
}

void merge(Attention const& attention, Queries const& queries, float const* part, float* merged)
{
    int64_t const stride = part_stride(attention);
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
        float const* const from = merged + row * part_stride(attention);
        int64_t const token = queries.row * desc.sequence + queries.token + row / group;
        float* const target
            = attention.output + (token * desc.num_heads + queries.kv_head * group + row % group) * dim;
        float const sum = from[1];
        for (int64_t i = 0; i < dim; ++i)
        {
            target[i] = from[2 + i] / sum;
        }
    }
}

constexpr AttentionKernels kKernels{append, attend_block, merge, finish};

} // namespace
} // namespace q2export::cpu
