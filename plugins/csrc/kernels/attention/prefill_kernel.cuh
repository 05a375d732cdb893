// The kernel of the prefill attention: one block per tile of query rows, four warps, keys and values through a ring of
// tiles in shared memory that asynchronous copies fill: keys 0, values 0, keys 1, values 1, ...
#pragma once

#include "attention/prefill_block.cuh"
#include "attention/prefill_output.cuh"
#include "attention/prefill_rows.cuh"
#include "attention/softmax.cuh"

namespace q2export
{

constexpr int kPrefillThreads = kPrefillWarps * kWarpSize;

// What the heuristics say of a kind of tile, as constants: device code may not call functions of the host.
template <PrefillTile kTile>
constexpr int kPrefillRows = prefill_rows(kTile);
template <PrefillTile kTile, int kHeadDim>
constexpr bool kPrefillSharesQuery = prefill_shares_query(kTile, kHeadDim);
template <PrefillTile kTile, int kHeadDim>
constexpr int kPrefillRingEnd = static_cast<int>(prefill_ring_end(kTile, kHeadDim));

// The head of a row; null for padding.
template <typename Element>
__device__ inline Element const* query_row(
    PrefillArguments<Element> const& arguments, TileRows const& rows, int row)
{
    return rows.is_padding(row) ? nullptr : arguments.query + rows.offset(arguments.desc, row);
}

// Starts copying the query of all rows to the start of shared memory, zeros for padding.
template <typename Element, int kHeadDim, int kRows>
__device__ inline void copy_query(PrefillArguments<Element> const& arguments, TileRows const& rows)
{
    constexpr int kChunks = kHeadDim / kChunkElements;
    int const chunk = static_cast<int>(threadIdx.x) % kChunks;
#pragma unroll 4
    for (int row = static_cast<int>(threadIdx.x) / kChunks; row < kRows; row += kPrefillThreads / kChunks)
    {
        copy_async_16(dynamic_shared() + tile_offset<kHeadDim>(row, chunk),
            arguments.query + rows.offset(arguments.desc, row) + chunk * kChunkElements, !rows.is_padding(row));
    }
}

template <typename Element, int kHeadDim, PrefillTile kTile>
__global__ void __launch_bounds__(kPrefillThreads, kPrefillBlocks)
    prefill_kernel(PrefillArguments<Element> const arguments)
{
    constexpr bool kSharesQuery = kPrefillSharesQuery<kTile, kHeadDim>;
    constexpr int kRows = kPrefillRows<kTile>;
    constexpr int kWarpRows = kRows / kPrefillWarps;
    constexpr int kFragments = kWarpRows / kFragmentRows;
    constexpr int kColumns = kPrefillKeys / 8;
    constexpr int kSlotBytes = kTileBytes<kHeadDim, kPrefillKeys>;
    constexpr int kRing = kSharesQuery ? kTileBytes<kHeadDim, kRows> : 0; // offset in shared memory, behind the query

    q2export_attention_desc const& desc = arguments.desc;
    PrefillBlock const block = locate_block(arguments, blockIdx.x);
    TileRows& rows = *reinterpret_cast<TileRows*>(dynamic_shared() + kPrefillRingEnd<kTile, kHeadDim>);
    find_rows(rows, desc, block, row_lengths(desc, arguments.past_lengths, arguments.query_lengths, block.b), kRows);
    __syncthreads();
    if (rows.is_padding(0))
    {
        write_rows<Element, kHeadDim, kWarpRows>(arguments, rows);
        return;
    }

    int32_t const begin = rows.begin;
    int32_t const end = rows.end;
    int32_t const tiles = (end - begin - 1) / kPrefillKeys + 1;
    int64_t const cached = cache_offset(desc, block.b, block.kv_head, 0);

    auto const start_copy = [&](int position, int slot) {
        if (position < 2 * tiles)
        {
            int32_t const key = begin + position / 2 * kPrefillKeys;
            Element const* const cache = (position % 2 == 0 ? arguments.keys : arguments.values) + cached;
            copy_rows<WholeRows<kHeadDim>, kHeadDim, kPrefillKeys, kPrefillThreads>(
                dynamic_shared() + kRing + slot * kSlotBytes, cache + static_cast<int64_t>(key) * kHeadDim,
                RowsBefore{end - key}, static_cast<int>(threadIdx.x));
        }
        copy_async_commit(); // an empty group where there is nothing left to copy keeps their count
    };
    if constexpr (kSharesQuery)
    {
        copy_query<Element, kHeadDim, kRows>(arguments, rows); // in the first group
    }
#pragma unroll
    for (int position = 0; position < kPrefillSlots - 1; ++position)
    {
        start_copy(position, position);
    }
    uint32_t query[kFragments][kSharesQuery ? 1 : kHeadDim / 16][4];
    if constexpr (!kSharesQuery)
    {
#pragma unroll
        for (int f = 0; f < kFragments; ++f)
        {
            int const row = first_row<kWarpRows>() + f * kFragmentRows + lane_index() / 4;
            load_query<kHeadDim>(query[f], query_row(arguments, rows, row), query_row(arguments, rows, row + 8));
        }
    }
    int const query_tile = rows_first<kHeadDim>(first_row<kWarpRows>() * kHeadDim * 2);
    auto const load_fragment = [&](uint32_t(&fragment)[4], int f, int k) {
        if constexpr (kSharesQuery)
        {
            int const offset = skip_chunks(recomputed(query_tile), 2 * k);
            load_matrix_x4(fragment, dynamic_shared() + offset + kTileBytes<kHeadDim, 16> * f);
        }
        else
        {
#pragma unroll
            for (int i = 0; i < 4; ++i)
            {
                fragment[i] = query[f][k][i];
            }
        }
    };

    // Waits for the tile at `position`, which is in `slot`, and refills the slot of the one before, which every warp
    // has read by now. Returns where the tile is.
    int slot = 0;
    auto const next_tile = [&](int position) {
        copy_async_wait<kPrefillSlots - 2>();
        __syncthreads();
        start_copy(position + kPrefillSlots - 1, slot == 0 ? kPrefillSlots - 1 : slot - 1);
        int const tile = kRing + slot * kSlotBytes;
        slot = slot == kPrefillSlots - 1 ? 0 : slot + 1;
        return tile;
    };

    OnlineSoftmax<kFragments> softmax(arguments.scale);
    float output[kFragments][kHeadDim / 8][4] = {};
    for (int i = 0; i < tiles; ++i)
    {
        float scores[kFragments][kColumns][4];
        score_keys<Element, kHeadDim>(scores, load_fragment, next_tile(2 * i));
        int32_t const key = begin + i * kPrefillKeys;
        if (rows.end_for_all - key < kPrefillKeys || rows.begin_for_all > key)
        {
            mask_rows(scores, rows, key, desc.sliding_window);
        }
        uint32_t weights[kFragments][kColumns / 2][4];
        float factor[kFragments][2];
        if (softmax.raise(factor, scores))
        {
            rescale_rows(output, factor);
        }
        softmax.template exponentiate<Element>(weights, scores);
        add_values<Element, kHeadDim>(output, weights, next_tile(2 * i + 1));
    }

    // Staged in place of the query of this warp's own rows, or of the ring when all warps are done with it.
    if constexpr (!kSharesQuery)
    {
        __syncthreads();
    }
    stage_rows<Element, kHeadDim>(output, softmax);
    __syncwarp();
    write_rows<Element, kHeadDim, kWarpRows>(arguments, rows);
}

} // namespace q2export
