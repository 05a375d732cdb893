// The arithmetic of the grouped product over packed weights: codes become elements in registers, are multiplied exactly
// by mma.sync, 32 products at a time, and those sums are scaled and added up in float32.
#pragma once

#include <cstdint>

#include <cuda_fp16.h>

#include "common/ptx.cuh"
#include "moe/dequantize.cuh"
#include "moe/quantized_loader.cuh"
#include "moe/quantized_product.cuh"
#include "moe/ring.cuh"

namespace q2export
{

// Where a lane reads its rows.
template <typename Product>
class QuantizedReader
{
public:
    using Element = typename Product::Element;

    __device__ QuantizedReader()
    {
        int const lane = threadIdx.x % 32;
        int const warp = threadIdx.x / 32;
        int const weight_row = warp % Product::kShape.weight_warps * Product::kRowTiles * 16;
        int const token_row = warp / Product::kShape.weight_warps * 16 + lane / 4;
        // ldmatrix takes eight rows from each eight lanes: a chunk of 32 rows, or, where a warp has 16, two chunks.
        codes_ = Product::kBits == 8 ? swizzled_codes(weight_row + lane / 4, lane % 4 / 2) + lane % 2 * 8
            : kLoadsRows             ? swizzled_codes(weight_row + lane, 0)
                                     : swizzled_codes(weight_row + lane % 16, lane / 16);
        tokens_ = Product::kTokensOffset + swizzled_tokens<Product::kTokenRowBytes>(token_row, lane % 4);
        scales_ = Product::kScalesOffset + (weight_row + lane / 4) * Product::kScaleBytes;
    }

    // Loads the codes of a part for a 16-row operand, unless an earlier call has. Codes of 4 bits come for two operands,
    // or for two parts of the only one, at a time.
    __device__ void load_codes(uint32_t (&words)[4], unsigned char const* stage, int part, int row_tile) const
    {
        unsigned char const* const rows = stage + row_tile * 16 * kCodeRowBytes;
        if constexpr (Product::kBits == 4)
        {
            if ((kLoadsRows ? row_tile : part) % 2 == 0)
            {
                load_matrix_x4(words, rows + (codes_ ^ part * Product::kChunkBytes));
            }
        }
        else
        {
            unsigned char const* const source = rows + (codes_ ^ part * 2 * Product::kChunkBytes);
            uint2 const upper = load_operand<uint2>(source);
            uint2 const lower = load_operand<uint2>(source + 8 * kCodeRowBytes);
            words[0] = upper.x;
            words[1] = upper.y;
            words[2] = lower.x;
            words[3] = lower.y;
        }
    }

    // The left operands of both products of a part, from what load_codes has left: those of row lane / 4 and of the row
    // eight further on.
    __device__ static void dequantize(
        uint32_t (&operands)[2][4], uint32_t const (&words)[4], int part, int row_tile)
    {
#pragma unroll
        for (int half = 0; half < 2; ++half)
        {
            uint32_t pairs[4];
            if constexpr (Product::kBits == 4)
            {
                dequantize4<Element>(pairs, words[(kLoadsRows ? row_tile : part) % 2 * 2 + half]);
            }
            else
            {
#pragma unroll
                for (int i = 0; i < 4; ++i)
                {
                    pairs[i] = dequantize8<Element>(words[half * 2 + i / 2], i % 2);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
            {
                operands[i / 2][i % 2 * 2 + half] = pairs[i];
            }
        }
    }

    // Elements 8 c .. 8 c + 7 of a part, of token lane / 4 of an operand of eight.
    __device__ uint4 load_tokens(unsigned char const* stage, int part, int operand) const
    {
        int const row = operand / 2 * Product::kShape.token_warps * 16 + operand % 2 * 8;
        return load_operand<uint4>(
            stage + row * Product::kTokenRowBytes + (tokens_ ^ part * 4 * Product::kChunkBytes));
    }

    // The scale of row lane / 4 of a 16-row operand, or of the row eight further on. `place`: its number in the row's
    // place.
    __device__ float load_scale(unsigned char const* stage, int row_tile, int half, int place) const
    {
        int const row = row_tile * 16 + half * 8;
        return __half2float(load_operand<__half>(stage + scales_ + row * Product::kScaleBytes + place * 2));
    }

private:
    static constexpr bool kLoadsRows = Product::kRowTiles % 2 == 0;

    int codes_; // bytes from the start of a stage
    int tokens_;
    int scales_;
};

// accumulator += scale of the row * (weights tokens), a part of both.
template <typename Element>
__device__ inline void multiply_scaled(
    float (&accumulator)[4], uint32_t const (&weights)[2][4], uint4 const& tokens, float const (&scales)[2])
{
    float sums[4];
    mma_m16n8k16_zero<Element>(sums, weights[0], {tokens.x, tokens.y});
    mma_m16n8k16<Element>(sums, weights[1], {tokens.z, tokens.w});
#pragma unroll
    for (int i = 0; i < 4; ++i)
    {
        accumulator[i] = fmaf(scales[i / 2], sums[i], accumulator[i]);
    }
}

// Multiplies a tile, with the first kOperands operands of eight tokens of each warp. Every accumulator adds up its parts
// in the order of the inner dimension, whatever the tile: a token's result does not depend on the tokens it comes with.
template <int kOperands, typename Product>
__device__ inline void multiply_operands(Accumulators<Product>& accumulators, QuantizedReader<Product> const& reader,
    QuantizedLoader<Product>& loader, Ring<Product>& ring, QuantizedArguments const& arguments)
{
    using Element = typename Product::Element;
    // Of a row with an odd number of blocks, every second begins at an odd scale: where a step has one scale, it is the
    // second of the two that were copied. Rows of gate are even and those of up odd; those of down as their lanes are.
    int const blocks_odd = arguments.depth >> arguments.block_shift & 1;
    int const lane_odd = static_cast<int>(threadIdx.x) / 4 & 1;
    for (int32_t depth = 0; depth < arguments.depth; depth += Product::kDepth)
    {
        ring.wait();
        unsigned char const* const stage = ring.base + ring.stage * Product::kStageBytes;
        int const first = depth >> arguments.block_shift;
        uint32_t words[4];
#pragma unroll(Product::kUnrolledParts)
        for (int part = 0; part < Product::kParts; ++part)
        {
            loader.template copy<Product::kParts>(ring.free_stage(), part);
            uint4 tokens[kOperands];
#pragma unroll
            for (int j = 0; j < kOperands; ++j)
            {
                tokens[j] = reader.load_tokens(stage, part, j);
            }
            int const in_step = part * kPartDepth >> arguments.block_shift;
#pragma unroll
            for (int i = 0; i < Product::kRowTiles; ++i)
            {
                uint32_t weights[2][4];
                reader.load_codes(words, stage, part, i);
                reader.dequantize(weights, words, part, i);
                float scales[2];
#pragma unroll
                for (int half = 0; half < 2; ++half)
                {
                    int const row_odd = Product::kGated ? half : lane_odd;
                    int const neighbour = (first ^ (row_odd & blocks_odd)) & 1;
                    scales[half] = reader.load_scale(stage, i, half, neighbour + in_step);
                }
#pragma unroll
                for (int j = 0; j < kOperands; ++j)
                {
                    multiply_scaled<Element>(accumulators.values[i][j], weights, tokens[j], scales);
                }
            }
        }
        loader.advance();
        copy_async_commit();
        ring.next();
    }
}

// Multiplies a tile, with no more operands than its tokens need.
template <int kOperands, typename Product>
__device__ inline void multiply_needed_operands(Accumulators<Product>& accumulators,
    QuantizedReader<Product> const& reader, QuantizedLoader<Product>& loader, Ring<Product>& ring,
    QuantizedArguments const& arguments, int32_t tokens)
{
    constexpr int kNext = kOperands == 1 ? 2 : kOperands + 2;
    if constexpr (kNext <= 2 * Product::kTokenPairs)
    {
        if (tokens > kOperands * Product::kShape.token_warps * 8)
        {
            multiply_needed_operands<kNext>(accumulators, reader, loader, ring, arguments, tokens);
            return;
        }
    }
    multiply_operands<kOperands>(accumulators, reader, loader, ring, arguments);
}

template <typename Product>
__device__ inline void multiply_tile(Accumulators<Product>& accumulators, QuantizedReader<Product> const& reader,
    QuantizedLoader<Product>& loader, Ring<Product>& ring, QuantizedArguments const& arguments, Work const& work)
{
    // A single operand has half of a pair's tokens, of which the second warp of tokens has none.
    constexpr int kFewest = Product::kShape.tokens == kSmallestTokenTile ? 1 : 2;
    accumulators.clear();
    multiply_needed_operands<kFewest>(accumulators, reader, loader, ring, arguments, work.tokens);
}

} // namespace q2export
