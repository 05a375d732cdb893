// Tiles as the warpgroup products read them. A tile of 128 rows is cut into blocks of 64 channels; a block's rows have
// 128 bytes, permuted as tile_offset<64> says, which is the 128-byte swizzle of the PTX ISA.
#pragma once

#include "attention/prefill_rows.cuh"
#include "common/hopper.cuh"

namespace q2export
{

constexpr int kWarpgroupThreads = 128;
constexpr int kHopperThreads = 2 * kWarpgroupThreads; // of a block
constexpr int kHopperRows = 128; // of the query, 64 for each warpgroup
constexpr int kHopperKeys = 128; // of a tile

constexpr int kBlockChannels = 64;
constexpr int kBlockRows = 128;
constexpr int kBlockBytes = kBlockRows * kBlockChannels * 2;
constexpr int kEightRows = 8 * kBlockChannels * 2; // bytes of the pattern that repeats

// Byte offset of a chunk of a row in a tile.
__device__ inline int block_offset(int row, int chunk)
{
    constexpr int kChunks = kBlockChannels / kChunkElements;
    return chunk / kChunks * kBlockBytes + tile_offset<kBlockChannels>(row, chunk % kChunks);
}

// The matrix descriptor of what begins at an address, for the 128-byte swizzle; `leading` and `stride` are bytes. The
// start is moved by adding skip_bytes() to it.
__device__ inline uint64_t matrix_descriptor(uint32_t address, uint32_t leading, uint32_t stride)
{
    constexpr uint64_t kSwizzle128 = 1;
    return (address & 0x3FFFFU) >> 4 | static_cast<uint64_t>(leading >> 4) << 16
        | static_cast<uint64_t>(stride >> 4) << 32 | kSwizzle128 << 62;
}

__device__ constexpr uint64_t skip_bytes(int bytes)
{
    return static_cast<uint64_t>(bytes) >> 4;
}

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
