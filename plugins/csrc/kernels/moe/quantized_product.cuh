// One instance of the grouped product over packed weights: tile, element type, bits of a code, and which of the two
// products of an expert it is.
//
// A step is 64 bytes of codes of each row of weights, in parts of 32 elements: the least that shares a scale. Of a part,
// lane 4 g + c has codes 8 c .. 8 c + 7 of its rows and elements 8 c .. 8 c + 7 of its tokens, 16 bytes as they lie in
// memory. The four lanes of a row put the first halves of their eights into one mma.m16n8k16, the second into another:
// the columns of a product may be taken in any order, if both operands take the same.
#pragma once

#include <cstdint>

#include "moe/product.cuh"
#include "moe/quantized_heuristics.h"

namespace q2export
{

struct QuantizedArguments : GroupedArguments
{
    unsigned char const* codes; // [experts, all rows, depth * bits / 8]
    unsigned char const* scales; // float16 [experts, all rows, depth >> block_shift]
    int32_t block_shift; // block_size is 1 << block_shift
};

constexpr int32_t kPartDepth = 32;

template <int kTile>
struct QuantizedTile
{
    static constexpr MoeTile kShape = kQuantizedMoeTiles[kTile];
};

template <typename Product>
class QuantizedLoader;
template <typename Product>
class QuantizedReader;

template <typename Element_, int kBits_, int kTile, bool kGated>
struct QuantizedProduct : ProductShape<QuantizedTile<kTile>, kGated>
{
    using Element = Element_;
    using Arguments = QuantizedArguments;
    using Loader = QuantizedLoader<QuantizedProduct>;
    using Reader = QuantizedReader<QuantizedProduct>;
    using Shape = ProductShape<QuantizedTile<kTile>, kGated>;
    using Shape::kShape;
    static constexpr int kBits = kBits_;
    static constexpr int kDepth = step_depth(kBits); // of a step
    static constexpr int kParts = kDepth / kPartDepth;
    // Where parts are unrolled, ptxas moves loads ahead from one into another. Found by trial, for all architectures: the
    // largest tile, and the second of 8-bit codes, have no registers left for it.
    static constexpr int kSums = Shape::kRowTiles * Shape::kTokenPairs;
    static constexpr int kUnrolledParts = kSums >= 12 || (kBits == 8 && kSums == 4) ? 1 : kParts;
    static constexpr int kStageBytes = stage_bytes(kShape, kBits);
    static constexpr int kSharedBytes = shared_bytes(kShape, kBits);
    static constexpr int kMatrices = kGated ? 2 : 1; // whose rows take turns in memory

    static constexpr int kChunkBytes = 16; // of a copy
    static constexpr int kChunks = kCodeRowBytes / kChunkBytes; // that the threads of a row copy at a time
    static constexpr int kTokenRowBytes = kDepth * kElementBytes;
    static constexpr int kTokenCopies = kTokenRowBytes / kChunkBytes / kChunks; // until a token's row is whole
    static constexpr int kScaleBytes = scale_bytes(kBits); // room for a row's, in a stage

    // A stage is codes, tokens, scales.
    static constexpr int kTokensOffset = kShape.weight_rows * kCodeRowBytes;
    static constexpr int kScalesOffset = kTokensOffset + kShape.tokens * kTokenRowBytes;

    // Rows, of weights or of tokens, that the threads copy at a time.
    static constexpr int kRowsPerPass = Shape::kThreads / kChunks;
    static constexpr int kWeightPasses = kShape.weight_rows / kRowsPerPass;
    static constexpr int kTokenPasses = (kShape.tokens + kRowsPerPass - 1) / kRowsPerPass;

    static_assert(Shape::passes_are_shifts(kRowsPerPass));
    static_assert(kShape.weight_rows <= Shape::kThreads, "a thread copies the scales of a row");
    static_assert(kTokensOffset % 256 == 0 && kStageBytes % 256 == 0, "readers turn bits of offsets in stages");
    static_assert(!kShape.is_hopper);
};

// Byte offset of a chunk of codes in a tile of rows of 64 bytes, permuted within the row: eight rows of one chunk, which
// ldmatrix reads at once, lie in eight different groups of four banks, and so do two chunks of four rows.
__host__ __device__ constexpr int swizzled_codes(int row, int chunk)
{
    int const turn = (row >> 1 & 1) * 2 + (row >> 2 & 1);
    return row * kCodeRowBytes + (chunk ^ turn) * 16;
}

// The same of a chunk of a token's elements: four chunks of two neighbouring tokens, which a quarter of a warp reads at
// once, lie in eight different groups of banks.
template <int kRowBytes>
__host__ __device__ constexpr int swizzled_tokens(int row, int chunk)
{
    return row * kRowBytes + (chunk ^ (row & 1) << 2) * 16;
}

} // namespace q2export
