// One instance of the grouped product: tile, element type, and which of the two products of an expert it is.
//
// A block multiplies weight_rows rows of an expert's matrices, the A operand, by `tokens` of its tokens, the B operand.
// In shared memory a row of either is 64 elements, 128 bytes. The accumulators of mma.m16n8k16 give lane 4 g + c rows g
// and g + 8 of each 16, for tokens 2 c and 2 c + 1; so where gate and up meet, each 16 rows are eight of gate and the
// same eight of up, and the lane that has a gate has its up (kGated). Those of wgmma are the same, of 16 rows for each
// of a warpgroup's four warps.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "moe/arguments.h"

namespace q2export
{

// What a product works on, in whatever form the weights are.
struct GroupedArguments
{
    void const* tokens; // gated: T [tokens, depth]; else T [positions, depth]
    void* outputs; // gated: T [positions, rows]; else T [slots, rows]
    int32_t const* sorted; // [positions]: slot
    TokenTile const* tiles;
    int32_t const* tile_count;
    int32_t rows; // of one matrix
    int32_t depth; // columns of a matrix
    int32_t top_k;
};

struct ProductArguments : GroupedArguments
{
    Expert experts[kExpertsByValue];
    Expert const* table; // in global memory, where there are more experts; else null
};

// How a tile is dealt out to warps and lanes. `Tile::kShape` is its MoeTile.
template <typename Tile, bool kGated_>
struct ProductShape
{
    static constexpr bool kGated = kGated_;
    static constexpr MoeTile kShape = Tile::kShape;
    static constexpr int kThreads = threads_of(kShape);
    static constexpr int kStages = kShape.stages;
    // Steps whose copies are under way while one is multiplied. wgmma may still read the stage of the step before.
    static constexpr int kAhead = kStages - (kShape.is_hopper ? 2 : 1);
    static constexpr int kOutputs = kShape.weight_rows / (kGated ? 2 : 1); // rows of a matrix, per tile

    // Of a warp: 16-row operands, pairs of 8-token operands, outputs, and 8x8 blocks of outputs for 8 tokens.
    static constexpr int kRowTiles = kShape.weight_rows / kShape.weight_warps / 16;
    static constexpr int kTokenPairs = kShape.tokens / kShape.token_warps / 16;
    static constexpr int kWarpOutputs = kOutputs / kShape.weight_warps;
    static constexpr int kBlocks = kWarpOutputs / 8;
    static constexpr int kVector = kBlocks < 4 ? kBlocks : 4; // blocks whose results a lane stores at once

    static_assert(kTokenPairs * kShape.token_warps * 16 == kShape.tokens);
    static_assert(kRowTiles * kShape.weight_warps * 16 == kShape.weight_rows && kBlocks % kVector == 0);
    static_assert(!kShape.is_hopper || (kShape.weight_warps % 4 == 0 && kShape.token_warps == 1));

    // The output, of a tile's kOutputs, that a row of the weights in shared memory belongs to. Within the kVector
    // blocks that a lane stores at once they are dealt out so that the lane's results are neighbours (store.cuh).
    __host__ __device__ static constexpr int output_of(int row)
    {
        constexpr int kWarpRows = kRowTiles * 16;
        // The rows of a warp follow one another; those of a warpgroup's four warps take turns, 16 at a time.
        int const warp = kShape.is_hopper ? row / (4 * kWarpRows) * 4 + row % 64 / 16 : row / kWarpRows;
        int const row_tile = kShape.is_hopper ? row % (4 * kWarpRows) / 64 : row % kWarpRows / 16;
        int const block = kGated ? row_tile : 2 * row_tile + row % 16 / 8;
        int const place = row % 8;
        return warp * kWarpOutputs + block / kVector * kVector * 8 + place / 2 * 2 * kVector + block % kVector * 2
            + place % 2;
    }

    __host__ __device__ static constexpr bool is_up(int row)
    {
        return kGated && row % 16 >= 8;
    }

    // Whether `pass` rows further on is the same number of outputs further on for all rows; the loads rely on it.
    static constexpr bool passes_are_shifts(int pass)
    {
        bool same = true;
        for (int row = 0; row < kShape.weight_rows; ++row)
        {
            int const in_pass = row % pass;
            same = same && output_of(row) == output_of(in_pass) + output_of(row - in_pass);
        }
        return same && pass % 16 == 0 && kShape.weight_rows % pass == 0;
    }
};

template <int kTile>
struct PlainTile
{
    static constexpr MoeTile kShape = kMoeTiles[kTile];
};

template <typename Product>
class Loader;
template <typename Product>
class Reader;

template <typename Element_, int kTile, bool kGated>
struct Product : ProductShape<PlainTile<kTile>, kGated>
{
    using Element = Element_;
    using Arguments = ProductArguments;
    using Loader = q2export::Loader<Product>;
    using Reader = q2export::Reader<Product>;
    using Shape = ProductShape<PlainTile<kTile>, kGated>;
    using Shape::kShape;
    static constexpr int kStageBytes = stage_bytes(kShape);
    static constexpr int kSharedBytes = shared_bytes(kShape);
    static constexpr int kRowBytes = kStepDepth * kElementBytes;
    static constexpr int kChunkBytes = 16; // of a copy, and of a row of an 8x8 matrix
    static constexpr int kChunkElements = kChunkBytes / kElementBytes;
    static constexpr int kChunks = kRowBytes / kChunkBytes;
    static constexpr int kTokensOffset = kShape.weight_rows * kRowBytes; // in a stage, behind the weights
    static constexpr int kRowsPerPass = Shape::kThreads / kChunks; // that the threads copy at a time
    static constexpr int kWeightPasses = kShape.weight_rows / kRowsPerPass;
    static constexpr int kTokenPasses = kShape.tokens / kRowsPerPass;

    static_assert(Shape::passes_are_shifts(kRowsPerPass) && kTokenPasses * kRowsPerPass == kShape.tokens);
    static_assert(kChunks == 8);
};

} // namespace q2export
