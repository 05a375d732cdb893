// The ring of stages in shared memory that the grouped product multiplies from.
#pragma once

#include <cstdint>

#include "common/hopper.cuh"
#include "moe/product.cuh"

namespace q2export
{

// Byte offset in a tile of rows of 128 bytes. The chunks of 16 bytes are permuted within a row, so that eight rows of
// one chunk, which ldmatrix reads at once, lie in eight different groups of four banks. It is also the 128-byte swizzle
// of wgmma.
__host__ __device__ constexpr int swizzled(int row, int chunk)
{
    return row * 128 + (chunk ^ row % 8) * 16;
}

// The ring as the whole block sees it. Each stage holds one step of a tile: the weights, then the tokens.
template <typename Product>
struct Ring
{
    unsigned char* base;
    int stage = 0; // to multiply next

    // The stage to copy to while `stage` is multiplied: nobody reads it any more.
    __device__ unsigned char* free_stage() const
    {
        int const free = stage + Product::kAhead;
        return base + (free < Product::kStages ? free : free - Product::kStages) * Product::kStageBytes;
    }

    // Waits until the stage to multiply next has arrived for all threads, and all are done with the free one.
    __device__ void wait() const
    {
        copy_async_wait<Product::kAhead - 1>();
        if constexpr (Product::kShape.is_hopper)
        {
            wgmma_fence_shared();
        }
        __syncthreads();
    }

    __device__ void next()
    {
        stage = stage + 1 == Product::kStages ? 0 : stage + 1;
    }
};

// The sums of a warp: [16-row operand][8-token operand]. Of its pairs of 8-token operands, pair j is the tokens
// 16 * (j * token_warps + warp) and on: a tile that is not full leaves all warps the same work.
template <typename Product>
struct Accumulators
{
    float values[Product::kRowTiles][2 * Product::kTokenPairs][4];

    __device__ void clear()
    {
#pragma unroll
        for (auto& row : values)
        {
#pragma unroll
            for (auto& token : row)
            {
                token[0] = token[1] = token[2] = token[3] = 0.0F;
            }
        }
    }
};

} // namespace q2export
