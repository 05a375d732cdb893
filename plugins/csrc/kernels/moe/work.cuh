// Which part of the work a tile of the persistent grid is.
#pragma once

#include <cstdint>

#include "moe/arguments.h"

namespace q2export
{

// Token tiles of one expert that are multiplied by all weight tiles before the next of them: the tokens and the weights
// of the blocks that run at a time stay in the L2 cache, also where one expert has nearly all tokens.
constexpr int32_t kTilesPerGroup = 16;

// A tile: some outputs of an expert for some of its tokens.
struct Work
{
    int32_t expert;
    int32_t weight_tile;
    int32_t first_position;
    int32_t tokens;
};

// Tiles are numbered by expert; within an expert by group of token tiles, then by weight tile, then by token tile:
// neighbours read the same weights, at the same time.
// `of_expert` is token tile number index / weight_tiles.
__host__ __device__ inline Work find_work(
    TokenTile const& of_expert, int32_t weight_tiles, int32_t tile_tokens, int32_t index)
{
    int32_t const in_expert = index - of_expert.first_tile * weight_tiles;
    int32_t const group = in_expert / (kTilesPerGroup * weight_tiles);
    int32_t const in_group = in_expert - group * kTilesPerGroup * weight_tiles;
    int32_t const first_tile = group * kTilesPerGroup;
    int32_t const width = of_expert.tiles - first_tile < kTilesPerGroup ? of_expert.tiles - first_tile : kTilesPerGroup;
    int32_t const first_slot = (first_tile + in_group % width) * tile_tokens;
    int32_t const slots = of_expert.slots - first_slot;
    return {of_expert.expert, in_group / width, of_expert.first_position + first_slot,
        slots < tile_tokens ? slots : tile_tokens};
}

} // namespace q2export
