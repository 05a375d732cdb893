// A block of a KV cache, in the forms that the register tiles read.
#pragma once

#include <algorithm>

#include "attention/tile.h"

namespace q2export::cpu
{
namespace
{

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

// A block of keys and values, which are put into the form that tiles read when a panel is first wanted.
class KeyBlock
{
public:
    // `keeps`: panels are wanted again; otherwise all lie in the memory of one, which stays in the L1 cache.
    KeyBlock(Attention const& attention, int64_t cache_offset, int64_t count, int64_t first, bool keeps, float* memory)
        : attention_(attention)
        , keys_(attention.key_cache + cache_offset)
        , values_(attention.value_cache + cache_offset)
        , count_(count)
        , keeps_(keeps)
        , in_place_(attention.desc.cache_dtype == Q2EXPORT_FLOAT32 && attention.desc.head_dim % Simd::kWidth == 0)
        , next_key_panel_(first / kPanelKeys)
        , next_value_panel_(first / kPanelKeys)
        , key_memory_(memory)
        , value_memory_(memory + (keeps ? kKeyBlock : kPanelKeys) * attention.desc.head_dim)
    {
    }

    bool keeps() const
    {
        return keeps_;
    }

    static int64_t memory_floats(int64_t dim)
    {
        return kKeyBlock * (dim + padded(dim));
    }

    // head_dim in whole vectors: how far values lie apart.
    static int64_t padded(int64_t dim)
    {
        return (dim + Simd::kWidth - 1) / Simd::kWidth * Simd::kWidth;
    }

    // Keys of panel `index`; panels are asked for in order, from the one of `first` on.
    float const* keys(int64_t index)
    {
        int64_t const dim = attention_.desc.head_dim;
        for (; next_key_panel_ <= index; ++next_key_panel_)
        {
            by_dtype(attention_.desc.cache_dtype, [&](auto element) {
                int64_t const first = next_key_panel_ * kPanelKeys;
                Bytes const source = keys_ + first * dim * element.kBytes;
                transpose_keys(element, source, std::min(kPanelKeys, count_ - first), dim,
                    key_memory_ + (keeps_ ? first * dim : 0));
            });
        }
        return key_memory_ + (keeps_ ? index * kPanelKeys * dim : 0);
    }

    // Scores against panel `index` of at most kFewRows queries.
    void score_few_rows(float const* queries, int64_t rows, int64_t index, float* scores) const
    {
        int64_t const dim = attention_.desc.head_dim;
        int64_t const first = index * kPanelKeys;
        by_dtype(attention_.desc.cache_dtype, [&](auto element) {
            by_rows<kFewRows>(rows, [&](auto count) {
                score_few<count>(element, queries, keys_ + first * dim * element.kBytes,
                    std::min(kPanelKeys, count_ - first), dim, scores + first);
            });
        });
    }

    // Values of panel `index`.
    float const* values(int64_t index)
    {
        int64_t const dim = attention_.desc.head_dim;
        if (in_place_)
        {
            return reinterpret_cast<float const*>(values_) + index * kPanelKeys * dim;
        }
        for (; next_value_panel_ <= index; ++next_value_panel_)
        {
            by_dtype(attention_.desc.cache_dtype, [&](auto element) {
                int64_t const first = next_value_panel_ * kPanelKeys;
                Bytes const source = values_ + first * dim * element.kBytes;
                widen_rows(element, source, std::min(kPanelKeys, count_ - first), dim,
                    value_memory_ + (keeps_ ? first * padded(dim) : 0));
            });
        }
        return value_memory_ + (keeps_ ? index * kPanelKeys * padded(dim) : 0);
    }

private:
    Attention const& attention_;
    Bytes keys_;
    Bytes values_;
    int64_t count_;
    bool keeps_;
    bool in_place_;
    int64_t next_key_panel_;
    int64_t next_value_panel_;
    float* key_memory_;
    float* value_memory_;
};

} // namespace
} // namespace q2export::cpu
