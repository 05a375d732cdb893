// Where the tokens of a ragged batch stand in the KV cache [batch, num_kv_heads, capacity, head_dim].
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "q2export/kernels.h"

namespace q2export
{

// The tokens of one row: `past` in the cache, then `fresh` to append.
struct RowLengths
{
    int64_t past;
    int64_t fresh;
};

// Reads the lengths of row b, cut to what the buffers hold: whatever the lengths are, no access leaves them.
__device__ inline RowLengths row_lengths(
    q2export_attention_desc const& desc, int64_t const* past_lengths, int64_t const* query_lengths, int64_t b)
{
    int64_t past = past_lengths[b] < 0 ? 0 : past_lengths[b];
    past = past > desc.capacity ? desc.capacity : past;
    int64_t const room = desc.capacity - past;
    int64_t const most = desc.sequence < room ? desc.sequence : room;
    int64_t fresh = query_lengths[b] < 0 ? 0 : query_lengths[b];
    fresh = fresh > most ? most : fresh;
    return {past, fresh};
}

// Offset of the head of `position` in a cache.
__device__ inline int64_t cache_offset(
    q2export_attention_desc const& desc, int64_t b, int64_t kv_head, int64_t position)
{
    return ((b * desc.num_kv_heads + kv_head) * desc.capacity + position) * desc.head_dim;
}

} // namespace q2export
