// The products of Hopper's prefill, over tiles of 128 rows in blocks of 64 channels.
#pragma once

#include "attention/prefill_rows.cuh"
#include "common/hopper.cuh"
#include "common/shared_tile.cuh"

namespace q2export
{

constexpr int kWarpgroupThreads = 128;
constexpr int kHopperThreads = 2 * kWarpgroupThreads; // of a block
constexpr int kHopperRows = 128; // of the query, 64 for each warpgroup
constexpr int kHopperKeys = 128; // of a tile

// Of the query, too, which has as many rows.
template <int kHeadDim>
using HopperTile = ColumnBlocks<kHeadDim, kHopperKeys>;
constexpr int kBlockBytes = HopperTile<64>::kBlockBytes;
constexpr int kEightRows = 8 * HopperTile<64>::kRowBytes; // the pattern that repeats

// scores = query keys^T for the 64 rows of a warpgroup and 128 keys: starts it.
template <typename Element, int kHeadDim>
__device__ inline void start_scores(float (&scores)[16][4], uint64_t query, uint64_t keys)
{
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k)
    {
        int const skipped = k / 4 * kBlockBytes + k % 4 * 32; // 16 channels have 32 bytes
        wgmma_m64n128k16<Element>(scores, query + skip_bytes(skipped), keys + skip_bytes(skipped), k > 0);
    }
}

// output += weights values for the 64 rows of a warpgroup and 128 values: starts it.
template <typename Element, int kChannels>
__device__ inline void start_values(float (&output)[kChannels][4], uint32_t const (&weights)[8][4], uint64_t values)
{
#pragma unroll
    for (int k = 0; k < 8; ++k)
    {
        wgmma_m64k16<Element>(output, weights[k], values + skip_bytes(k * 2 * kEightRows));
    }
}

} // namespace q2export
