// The arithmetic of the grouped product by wgmma: each warpgroup multiplies 64 rows of weights at a time, both operands
// from shared memory.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"
#include "moe/loader.cuh"
#include "moe/ring.cuh"

namespace q2export
{

// The matrix descriptor of rows of 128 bytes, swizzled, from a multiple of 1024 bytes on: eight rows are 1024 bytes
// from the next (PTX ISA 8.0, "Matrix Descriptor Format"; the leading dimension is not used).
__device__ inline uint64_t row_descriptor(uint32_t address)
{
    constexpr uint64_t kSwizzle128 = 1;
    constexpr uint64_t kStride = 8 * 128;
    return (address & 0x3FFFFU) >> 4 | uint64_t{1} << 16 | kStride >> 4 << 32 | kSwizzle128 << 62;
}

// Starts adding a stage to the sums of a warpgroup, or to zero.
template <int kTokens, typename Product>
__device__ inline void start_stage(Accumulators<Product>& accumulators, uint32_t stage, bool accumulate)
{
    constexpr int kGroupRows = 64 * Product::kRowTiles; // of a warpgroup
    uint32_t const warpgroup = threadIdx.x / 128;
    uint64_t const weights = row_descriptor(stage + warpgroup * kGroupRows * Product::kRowBytes);
    uint64_t const tokens = row_descriptor(stage + Product::kTokensOffset);
#pragma unroll
    for (int part = 0; part < kStepDepth / 16; ++part)
    {
        constexpr int kPartBytes = 16 * kElementBytes;
        uint64_t const skipped = static_cast<uint64_t>(part * kPartBytes) >> 4;
#pragma unroll
        for (int i = 0; i < Product::kRowTiles; ++i)
        {
            uint64_t const rows = static_cast<uint64_t>(i * 64 * Product::kRowBytes) >> 4;
            if constexpr (kTokens == 128)
            {
                wgmma_m64n128k16<typename Product::Element>(
                    accumulators.values[i], weights + rows + skipped, tokens + skipped, accumulate || part > 0);
            }
            else
            {
                static_assert(kTokens == 64);
                wgmma_m64n64k16<typename Product::Element>(
                    accumulators.values[i], weights + rows + skipped, tokens + skipped, accumulate || part > 0);
            }
        }
    }
}

// Multiplies a tile, with its first kTokens tokens. The products of a step run while the next step is waited for.
template <int kTokens, typename Product>
__device__ inline void multiply_by_warpgroups(
    Accumulators<Product>& accumulators, Loader<Product>& loader, Ring<Product>& ring, int32_t depth)
{
    uint32_t const base = shared_address(ring.base);
    for (int32_t left = depth; left > 0; left -= kStepDepth)
    {
        ring.wait();
        wgmma_fence();
        start_stage<kTokens>(accumulators, base + ring.stage * Product::kStageBytes, left != depth);
        wgmma_commit();
        loader.template copy<1>(ring.free_stage(), 0);
        loader.advance();
        copy_async_commit();
        wgmma_wait<1>();
        ring.next();
    }
    wgmma_wait<0>();
#pragma unroll
    for (auto& row : accumulators.values)
    {
        wgmma_keep(row);
    }
}

} // namespace q2export
