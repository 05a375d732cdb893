// Masks of the prefill attention.
#pragma once

#include "attention/prefill_block.cuh"
#include "attention/tile.cuh"

namespace q2export
{

// Hides what the rows of a warp do not see of the keys from `key` on.
template <int kFragments, int kColumns>
__device__ inline void mask_rows(
    float (&scores)[kFragments][kColumns][4], TileRows const& rows, int32_t key, int32_t sliding_window)
{
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
    {
        int32_t begin[2];
        int32_t end[2];
#pragma unroll
        for (int half = 0; half < 2; ++half)
        {
            int const row = first_row<kFragments * kFragmentRows>() + f * kFragmentRows + half * 8 + lane_index() / 4;
            int32_t const newest = rows.end_of(rows.token_of(row));
            begin[half] = begin_of(sliding_window, newest) - key;
            end[half] = newest - key;
        }
        hide_keys(scores[f], begin, end, sliding_window > 0);
    }
}

} // namespace q2export
