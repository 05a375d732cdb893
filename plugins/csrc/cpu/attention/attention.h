// Attention on the KV cache: what the instruction sets implement.
//
// Keys are taken in blocks of kKeyBlock that begin at multiples of it. Each block of each query gives a part: its largest
// score, the sum of its exponentials and the sum of values weighted with them; parts are merged from the first block to the
// last. So a query has the same bits whatever other queries are computed with it, and blocks can be shared out to threads.
// In which order a block's products are added: tile.h.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "q2export/cpu.h"

namespace q2export::cpu
{

constexpr int64_t kKeyBlock = 256;

struct Attention
{
    q2export_cpu_attention_desc desc;
    float const* key;
    float const* value;
    float const* query;
    float const* inv_freq; // or null
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    unsigned char* key_cache;
    unsigned char* value_cache;
    float* output;
    float* rotated; // [batch, num_kv_heads, sequence, group, head_dim]: queries, rotated and scaled

    int64_t group() const
    {
        return desc.num_heads / desc.num_kv_heads;
    }

    int64_t element_bytes() const
    {
        return desc.cache_dtype == Q2EXPORT_FLOAT32 ? 4 : 2;
    }

    // Of the queries of a row's KV head, the first one's.
    float const* rotated_rows(int64_t row, int64_t kv_head, int64_t token) const
    {
        return rotated + (((row * desc.num_kv_heads + kv_head) * desc.sequence + token) * group()) * desc.head_dim;
    }

    int64_t cache_offset(int64_t row, int64_t kv_head, int64_t position) const // bytes
    {
        return ((row * desc.num_kv_heads + kv_head) * desc.capacity + position) * desc.head_dim * element_bytes();
    }
};

// Consecutive new tokens of one row, and one KV head: count * group query vectors.
struct Queries
{
    int64_t row;
    int64_t kv_head;
    int64_t token;
    int64_t count;
};

// Blocks of keys that the queries see: [first, last).
struct KeyBlocks
{
    int64_t first;
    int64_t last;
};

KeyBlocks visible_blocks(Attention const& attention, Queries const& queries);

// A part, or several merged: of each query vector the largest score, then the sum, then head_dim weighted values, in
// whole vectors of the widest instruction set.
inline int64_t part_stride(Attention const& attention)
{
    return (attention.desc.head_dim + 15) / 16 * 16 + 2;
}

inline int64_t part_floats(Attention const& attention, Queries const& queries)
{
    return queries.count * attention.group() * part_stride(attention);
}

struct AttentionKernels
{
    // Rotates one token's queries into `rotated` and appends its key and value to the cache.
    void (*append)(Attention const& attention, int64_t row, int64_t token);
    // Writes the part of one block.
    void (*attend_block)(Attention const& attention, Queries const& queries, int64_t block, float* part);
    // Merges a part into what has been merged before.
    void (*merge)(Attention const& attention, Queries const& queries, float const* part, float* merged);
    // Writes the output of merged parts.
    void (*finish)(Attention const& attention, Queries const& queries, float const* merged);
};

extern AttentionKernels const kAttentionPortable;
extern AttentionKernels const kAttentionAvx2;
extern AttentionKernels const kAttentionAvx512;

} // namespace q2export::cpu
