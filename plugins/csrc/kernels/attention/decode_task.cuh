// What a block of decode attention works on.
#pragma once

#include "attention/cache.cuh"
#include "attention/heuristics.h"
#include "attention/softmax.cuh"
#include "attention/tile.cuh"
#include "attention/workspace.h"

namespace q2export
{

// The warps of a block are `kTeams` teams; a team has keys of its own, and each of its warps has 16 query rows.
template <int kHeadDim_, int kWarps_, int kRowWarps_>
struct DecodeShape
{
    static constexpr int kHeadDim = kHeadDim_;
    static constexpr int kWarps = kWarps_;
    static constexpr int kRowWarps = kRowWarps_;
    static constexpr int kThreads = kWarps * kWarpSize;
    static constexpr int kTeams = kWarps / kRowWarps;
    static constexpr int kTeamThreads = kRowWarps * kWarpSize;
    static constexpr int kRows = kRowWarps * kFragmentRows;
    static constexpr int kKeys = decode_tile_keys(kHeadDim, kRowWarps);
    static constexpr int kStepKeys = kRowWarps == 1 ? kKeys : kKeys / 2; // at once: their scores fill registers
    static constexpr int kPartTiles = decode_part_keys(kHeadDim) / kKeys; // at least
    static constexpr int kStageBytes = 2 * kTileBytes<kHeadDim, kKeys>;
    static constexpr int kTeamBytes = kDecodeStages * kStageBytes;
    static constexpr int kSharedBytes = kTeams * kTeamBytes;
    static_assert(kSharedBytes == decode_shared_bytes(kWarps));
    static_assert(kTeams == 1 || kRowWarps == 1, "a team is a warp or the block: no other barrier is used");
};

// Relative to the maximum itself: partial results are, and the tensor cores wait for memory.
using DecodeSoftmax = OnlineSoftmax<1, 0>;

template <typename Element>
struct DecodeArguments
{
    q2export_attention_desc desc;
    Element const* query; // [batch, sequence, num_heads, head_dim]
    Element const* keys; // [batch, num_kv_heads, capacity, head_dim], as are the values
    Element const* values;
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    Element* output;
    float factor; // scale * log2(e)
    int32_t group; // query heads per KV head
    int32_t row_tiles;
    int32_t splits;
    DecodePartials partials;
};

// One part of the keys for one row tile of a KV head of a row of the batch.
struct DecodeTask
{
    int64_t unit; // [batch, num_kv_heads, row_tiles]
    int32_t b;
    int32_t kv_head;
    int32_t group;
    int32_t first_row; // of the unit, among the KV head's: row = token * group + head of the group
    int32_t rows; // of the unit
    int32_t past;
    int32_t fresh; // tokens that are there; rows of later ones are padding
    int32_t key_begin; // that any row of the unit sees
    int32_t key_end;
    int32_t part;
    int32_t parts; // 0: this block has nothing to do
    int32_t tile_begin; // tiles of kKeys keys, of this part
    int32_t tile_end;

    __device__ int32_t token_of(int32_t row) const
    {
        return (first_row + row) / group;
    }

    __device__ bool is_padding(int32_t row) const
    {
        return token_of(row) >= fresh;
    }

    // Offset of a row in query and output.
    __device__ int64_t row_offset(q2export_attention_desc const& desc, int32_t row) const
    {
        int32_t const token = token_of(row);
        int64_t const head = static_cast<int64_t>(kv_head) * group + (first_row + row - token * group);
        return ((int64_t{b} * desc.sequence + token) * desc.num_heads + head) * desc.head_dim;
    }

    // The keys a token sees: itself and what came before it, down to the window's oldest.
    __device__ int32_t seen_end(int32_t token) const
    {
        return past + token + 1;
    }

    __device__ int32_t seen_begin(int32_t token, int32_t window) const
    {
        return window > 0 && seen_end(token) > window ? seen_end(token) - window : 0;
    }
};

// The grid is [splits, num_kv_heads * row_tiles, batch]: the row's lengths are the first thing a block can ask for.
template <typename Shape, typename Element>
__device__ inline DecodeTask locate_task(DecodeArguments<Element> const& arguments)
{
    q2export_attention_desc const& desc = arguments.desc;
    DecodeTask task;
    task.b = static_cast<int32_t>(blockIdx.x);
    RowLengths const row = row_lengths(desc, arguments.past_lengths, arguments.query_lengths, task.b);
    task.past = static_cast<int32_t>(row.past);
    task.fresh = static_cast<int32_t>(row.fresh);
    task.part = static_cast<int32_t>(blockIdx.z);
    int32_t const in_row = static_cast<int32_t>(blockIdx.y); // [num_kv_heads, row_tiles]
    task.unit = int64_t{task.b} * gridDim.y + in_row;
    task.kv_head = in_row / arguments.row_tiles;
    int32_t const row_tile = in_row - task.kv_head * arguments.row_tiles;
    task.group = arguments.group;
    task.first_row = row_tile * Shape::kRows;
    int32_t const rows_left = static_cast<int32_t>(desc.sequence) * task.group - task.first_row;
    task.rows = rows_left < Shape::kRows ? rows_left : Shape::kRows;

    int32_t const first_token = task.token_of(0);
    int32_t const token_end = task.token_of(task.rows - 1) + 1;
    bool const is_padding = task.is_padding(0);
    task.key_begin = is_padding ? 0 : task.seen_begin(first_token, desc.sliding_window);
    task.key_end = is_padding ? 0 : task.seen_end((token_end < task.fresh ? token_end : task.fresh) - 1);

    // Parts of whole tiles, the first ones with one more where they cannot be equal.
    int32_t const first_tile = task.key_begin / Shape::kKeys;
    int32_t const tiles = (task.key_end + Shape::kKeys - 1) / Shape::kKeys - first_tile;
    int32_t const worthwhile = tiles / Shape::kPartTiles;
    int32_t const wanted = worthwhile < arguments.splits ? worthwhile : arguments.splits;
    int32_t const parts = wanted > 1 ? wanted : 1;
    int32_t const share = tiles / parts;
    int32_t const larger = tiles - share * parts;
    task.tile_begin = first_tile + task.part * share + (task.part < larger ? task.part : larger);
    task.tile_end = task.tile_begin + share + (task.part < larger ? 1 : 0);
    task.parts = task.part < parts ? parts : 0;
    return task;
}

} // namespace q2export
