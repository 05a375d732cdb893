// How the rows of a warp leave: through shared memory, to be written 16 bytes at a time.
#pragma once

#include "attention/prefill_block.cuh"
#include "attention/softmax.cuh"
#include "attention/tile.cuh"
#include "common/vector.cuh"

namespace q2export
{

// Writes the output of a warp's rows, divided by the sums of their weights, to the tile at the start of shared memory.
template <typename Element, int kHeadDim, int kFragments>
__device__ inline void stage_rows(
    float const (&output)[kFragments][kHeadDim / 8][4], OnlineSoftmax<kFragments> const& softmax)
{
#pragma unroll
    for (int f = 0; f < kFragments; ++f)
    {
#pragma unroll
        for (int half = 0; half < 2; ++half)
        {
            float const factor = softmax.normaliser(f, half);
            int const row = first_row<kFragments * kFragmentRows>() + f * kFragmentRows + half * 8 + lane_index() / 4;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n)
            {
                unsigned char* const chunk = dynamic_shared() + tile_offset<kHeadDim>(row, n);
                reinterpret_cast<uint32_t*>(chunk)[lane_index() % 4]
                    = pack2<Element>(output[f][n][2 * half] * factor, output[f][n][2 * half + 1] * factor);
            }
        }
    }
}

// Writes a warp's kRows rows from the start of shared memory; padding as zeros.
template <typename Element, int kHeadDim, int kRows>
__device__ inline void write_rows(
    PrefillArguments<Element> const& arguments, TileRows const& rows)
{
    constexpr int kChunks = kHeadDim / kChunkElements;
    int const chunk = lane_index() % kChunks;
#pragma unroll 4
    for (int i = lane_index() / kChunks; i < kRows; i += kWarpSize / kChunks)
    {
        int const row = first_row<kRows>() + i;
        if (rows.token_of(row) >= arguments.desc.sequence)
        {
            continue;
        }
        unsigned char const* const staged = dynamic_shared() + tile_offset<kHeadDim>(row, chunk);
        store_vector(arguments.output + rows.offset(arguments.desc, row) + chunk * kChunkElements,
            rows.is_padding(row) ? make_uint4(0, 0, 0, 0) : load_vector(staged));
    }
}

} // namespace q2export
