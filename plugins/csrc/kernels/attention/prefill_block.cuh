// What one block of the prefill attention works on.
#pragma once

#include "attention/cache.cuh"
#include "attention/prefill_heuristics.h"
#include "attention/tile.cuh"

namespace q2export
{

template <typename Element>
struct PrefillArguments
{
    q2export_attention_desc desc;
    Element const* query; // [batch, sequence, num_heads, head_dim]
    Element const* keys; // [batch, num_kv_heads, capacity, head_dim], as are the values
    Element const* values;
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    Element* output;
    float scale; // desc.scale, times log2(e)
    uint32_t row_tiles; // of PrefillPlan
    uint32_t section;
};

// Which tile of rows of which KV head block `index` computes; see plan_prefill for the order.
struct PrefillBlock
{
    uint32_t b;
    uint32_t kv_head;
    uint32_t row_tile;
};

template <typename Element>
__device__ inline PrefillBlock locate_block(PrefillArguments<Element> const& arguments, uint32_t index)
{
    uint32_t const kv_heads = static_cast<uint32_t>(arguments.desc.num_kv_heads);
    uint32_t const pairs = static_cast<uint32_t>(arguments.desc.batch) * kv_heads;
    uint32_t const first_pair = index / (arguments.section * arguments.row_tiles) * arguments.section;
    uint32_t const in_section = index - first_pair * arguments.row_tiles;
    uint32_t const section = arguments.section < pairs - first_pair ? arguments.section : pairs - first_pair;
    uint32_t const pair = first_pair + in_section % section;
    return {pair / kv_heads, pair % kv_heads, arguments.row_tiles - 1 - in_section / section};
}

// The oldest key a row sees whose newest is end - 1.
__device__ inline int32_t begin_of(int32_t sliding_window, int32_t end)
{
    return sliding_window > 0 && end > sliding_window ? end - sliding_window : 0;
}

// The rows of a tile: every head of the group for one token, then the next token; and the keys they see. In shared
// memory, where it takes no registers. Positions fit in 32 bits, for the cache has no more.
struct TileRows
{
    int64_t origin; // offset of row 0 in [batch, sequence, num_heads, head_dim]
    int32_t token; // of row 0
    int32_t past; // tokens in the cache before the new ones
    int32_t fresh; // new tokens; those beyond are padding
    int32_t begin; // the keys that some row sees, from the start of a tile of keys
    int32_t end;
    int32_t begin_for_all; // the keys that all rows see
    int32_t end_for_all;
    uint8_t skipped[prefill_rows(PrefillTile::kTall)]; // tokens from row 0 to each row

    // The token of a row; it may be padding, or beyond the sequence.
    __device__ int32_t token_of(int row) const
    {
        return token + skipped[row];
    }

    __device__ bool is_padding(int row) const
    {
        return token_of(row) >= fresh;
    }

    // Offset of a row in [batch, sequence, num_heads, head_dim].
    __device__ int64_t offset(q2export_attention_desc const& desc, int row) const
    {
        int64_t const other_heads = desc.num_heads - desc.num_heads / desc.num_kv_heads; // between a group and its next
        return origin + (row + skipped[row] * other_heads) * desc.head_dim;
    }

    // One beyond the newest key a token sees. Padding sees what the last token sees.
    __device__ int32_t end_of(int32_t t) const
    {
        return past + (t < fresh ? t + 1 : fresh);
    }
};
static_assert(sizeof(TileRows) <= kPrefillRowsBytes);

// Fills in the rows of a block; a barrier has to follow.
__device__ inline void find_rows(
    TileRows& tile, q2export_attention_desc const& desc, PrefillBlock const& block, RowLengths const& lengths, int rows)
{
    uint32_t const group = static_cast<uint32_t>(desc.num_heads / desc.num_kv_heads);
    int64_t const first = static_cast<int64_t>(block.row_tile) * rows;
    uint32_t const head = static_cast<uint32_t>(first % group); // of row 0, in its group
    if (threadIdx.x == 0)
    {
        tile.token = static_cast<int32_t>(first / group);
        tile.past = static_cast<int32_t>(lengths.past);
        tile.fresh = static_cast<int32_t>(lengths.fresh);
        tile.origin = ((block.b * desc.sequence + tile.token) * desc.num_heads
                          + static_cast<int64_t>(block.kv_head) * group + head)
            * desc.head_dim;
        tile.end_for_all = tile.end_of(tile.token);
        tile.end = tile.end_of(tile.token + static_cast<int32_t>((head + rows - 1) / group));
        tile.begin = begin_of(desc.sliding_window, tile.end_for_all) / kPrefillKeys * kPrefillKeys;
        tile.begin_for_all = begin_of(desc.sliding_window, tile.end);
    }
    for (uint32_t row = threadIdx.x; row < static_cast<uint32_t>(rows); row += blockDim.x)
    {
        tile.skipped[row] = static_cast<uint8_t>((head + row) / group);
    }
}

// The first of the rows of this warp.
template <int kWarpRows>
__device__ inline int first_row()
{
    return recomputed(static_cast<int>(threadIdx.x)) / kWarpSize * kWarpRows;
}

} // namespace q2export
