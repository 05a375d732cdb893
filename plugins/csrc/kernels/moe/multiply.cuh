// The arithmetic of the grouped product: the stages of a tile into the accumulators of a warp, by mma.sync.
#pragma once

#include <cstdint>

#include "common/ptx.cuh"
#include "moe/loader.cuh"
#include "moe/product.cuh"
#include "moe/ring.cuh"

namespace q2export
{

// The operands of one 16-deep part of a stage.
template <typename Product, int kPairs>
struct Operands
{
    uint32_t weights[Product::kRowTiles][4];
    uint32_t tokens[kPairs][4]; // registers 0, 1: the first eight; 2, 3: the second
};

// Where a lane reads its rows.
template <typename Product>
class Reader
{
public:
    __device__ Reader()
    {
        int const lane = threadIdx.x % 32;
        int const warp = threadIdx.x / 32;
        int const weight_row = warp % Product::kShape.weight_warps * Product::kRowTiles * 16 + lane % 16;
        int const token_row = warp / Product::kShape.weight_warps * 16 + lane / 16 * 8 + lane % 8;
        // ldmatrix takes eight rows from each eight lanes. Weights: rows 0 .. 7 and 8 .. 15 of the first eight columns,
        // then of the next. Tokens: 0 .. 7 by both, then 8 .. 15.
        weights_ = swizzled(weight_row, lane / 16);
        tokens_ = Product::kTokensOffset + swizzled(token_row, lane / 8 % 2);
    }

    // Stages are whole rows of 128 bytes, so that the chunk is bits 4 .. 6 of the offset: that of a part differs in the
    // upper two of them.
    template <int kPairs>
    __device__ void load(Operands<Product, kPairs>& operands, unsigned char const* ring, int stage, int part) const
    {
        constexpr int kRows = 16 * Product::kRowBytes;
        int const chunk = part * 2 * Product::kChunkBytes;
        unsigned char const* const weights = ring + ((stage * Product::kStageBytes + weights_) ^ chunk);
        unsigned char const* const tokens = ring + ((stage * Product::kStageBytes + tokens_) ^ chunk);
#pragma unroll
        for (int i = 0; i < Product::kRowTiles; ++i)
        {
            load_matrix_x4(operands.weights[i], weights + i * kRows);
        }
#pragma unroll
        for (int j = 0; j < kPairs; ++j)
        {
            load_matrix_x4(operands.tokens[j], tokens + j * Product::kShape.token_warps * kRows);
        }
    }

private:
    int weights_; // bytes from the start of a stage
    int tokens_;
};

template <typename Product, int kPairs>
__device__ inline void multiply_part(
    Accumulators<Product>& accumulators, Operands<Product, kPairs> const& operands)
{
#pragma unroll
    for (int j = 0; j < 2 * kPairs; ++j)
    {
        uint32_t const tokens[2] = {operands.tokens[j / 2][j % 2 * 2], operands.tokens[j / 2][j % 2 * 2 + 1]};
#pragma unroll
        for (int i = 0; i < Product::kRowTiles; ++i)
        {
            mma_m16n8k16<typename Product::Element>(accumulators.values[i][j], operands.weights[i], tokens);
        }
    }
}

// Multiplies a tile, with the first kPairs pairs of each warp's tokens. The operands of a part are loaded while
// those of the one before are multiplied, also across stages, and the copies to the free stage are started in between,
// a few at a time, so that the tensor cores do not wait for either. Every accumulator adds up its products in the order
// of the inner dimension, whatever the tile: a token's result does not depend on the tokens it comes with.
template <int kPairs, typename Product>
__device__ inline void multiply_pairs(Accumulators<Product>& accumulators, Reader<Product> const& reader,
    Loader<Product>& loader, Ring<Product>& ring, int32_t depth)
{
    constexpr int kParts = kStepDepth / 16;
    Operands<Product, kPairs> operands[2];
    ring.wait();
    reader.load(operands[0], ring.base, ring.stage, 0);
    for (int32_t left = depth; left > 0; left -= kStepDepth)
    {
#pragma unroll
        for (int part = 0; part + 1 < kParts; ++part)
        {
            reader.load(operands[(part + 1) % 2], ring.base, ring.stage, part + 1);
            loader.template copy<kParts - 1>(ring.free_stage(), part);
            multiply_part(accumulators, operands[part % 2]);
        }
        loader.advance();
        copy_async_commit();
        ring.next();
        if (left > kStepDepth)
        {
            ring.wait();
            reader.load(operands[0], ring.base, ring.stage, 0);
        }
        multiply_part(accumulators, operands[1]);
    }
}

// Multiplies a tile, with no more pairs than its tokens need.
template <int kPairs = 1, typename Product>
__device__ inline void multiply_needed(Accumulators<Product>& accumulators, Reader<Product> const& reader,
    Loader<Product>& loader, Ring<Product>& ring, int32_t depth, int32_t tokens)
{
    if constexpr (kPairs < Product::kTokenPairs)
    {
        if (tokens > kPairs * Product::kShape.token_warps * 16)
        {
            multiply_needed<kPairs + 1>(accumulators, reader, loader, ring, depth, tokens);
            return;
        }
    }
    multiply_pairs<kPairs>(accumulators, reader, loader, ring, depth);
}

} // namespace q2export
