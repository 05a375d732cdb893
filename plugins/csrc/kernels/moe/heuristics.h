// How Q2MoE cuts its work up: pure functions of the description and the GPU.
//
// Both products of a layer (gate and up together, then down) run through one kernel, whose tile is some rows of an
// expert's matrices times some of the expert's tokens. The rows come from memory once per token tile, so a tile holds
// all tokens of an average expert where it can. docs/kernels.md, "Mixture of experts", has the reasoning.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/gpu.h"
#include "q2export/kernels.h"

namespace q2export
{

constexpr int32_t kStepDepth = 64; // elements of the inner dimension per stage: a row of 128 bytes, all 32 banks
constexpr int32_t kElementBytes = 2; // fp16 and bf16
constexpr int32_t kSmallestTokenTile = 16;

struct MoeTile
{
    int32_t weight_rows; // of gate and up together, or of down
    int32_t tokens;
    int32_t weight_warps; // the warps of a block are weight_warps x token_warps
    int32_t token_warps;
    int32_t stages; // of the ring in shared memory
    bool is_hopper; // multiplied by wgmma, else by mma.sync
};

// Few tokens to an expert first. The last three are for many: more rows of weights need more shared memory, and read
// tokens less often.
inline constexpr MoeTile kMoeTiles[] = {
    {64, 16, 4, 1, 6, false},
    {128, 32, 4, 1, 4, false},
    {128, 64, 2, 2, 4, false},
    {128, 128, 2, 2, 3, false},
    {256, 128, 4, 2, 3, false},
    {256, 128, 8, 1, 4, true},
};
constexpr int32_t kMoeTileCount = sizeof kMoeTiles / sizeof kMoeTiles[0];

// Nobody has run the tile for Hopper on a GPU. Until tests/gpu/test_moe.py has passed on one, it is used where a test
// asks for it and nowhere else.
constexpr bool kHopperMoeIsTested = false;

constexpr int32_t threads_of(MoeTile const& tile)
{
    return tile.weight_warps * tile.token_warps * 32;
}

constexpr int32_t stage_bytes(MoeTile const& tile)
{
    return (tile.weight_rows + tile.tokens) * kStepDepth * kElementBytes;
}

constexpr int32_t shared_bytes(MoeTile const& tile)
{
    return tile.stages * stage_bytes(tile);
}

// Blocks of this shared memory that a multiprocessor holds; the hardware keeps 1 KiB of each for itself (CUDA C++
// Programming Guide, compute capabilities 8.x and later). More than three do not put more bytes in flight.
constexpr int32_t blocks_per_multiprocessor(int32_t bytes, Gpu const& gpu)
{
    int32_t const fitting = gpu.shared_bytes_per_multiprocessor / (bytes + 1024);
    return std::max(1, std::min(3, fitting));
}

// Tokens of an expert if the router spreads them evenly, rounded up.
inline int64_t tokens_per_expert(q2export_moe_desc const& desc)
{
    int64_t const slots = desc.num_tokens * desc.top_k;
    return (slots + desc.num_experts - 1) / desc.num_experts;
}

// Tiles of weight rows for one token tile; `matrices` is 2 for gate and up, which share a tile.
constexpr int64_t weight_tiles(MoeTile const& tile, int32_t rows, int32_t matrices)
{
    int32_t const outputs = tile.weight_rows / matrices;
    return (static_cast<int64_t>(rows) + outputs - 1) / outputs;
}

// The most token tiles any routing makes: full ones, and a partial one for each expert that has tokens.
constexpr int64_t max_token_tiles(int64_t slots, int32_t num_experts, int32_t tokens)
{
    return std::min(slots, slots / tokens + std::min<int64_t>(slots, num_experts));
}

// Whether the fast kernels take the sizes: they copy 16 bytes at a time, count the slots of experts in shared memory,
// and number slots, tiles and the bytes of a row with 32 bits.
inline bool are_fast_sizes(q2export_moe_desc const& desc, MoeTile const& tile)
{
    constexpr int32_t kMultiple = 16 / kElementBytes;
    constexpr int32_t kMaxRow = INT32_MAX / kElementBytes;
    constexpr int32_t kMaxExperts = 1024;
    int32_t const longest = std::max(desc.hidden_size, desc.intermediate_size);
    int64_t const slots = desc.num_tokens * desc.top_k;
    if (desc.hidden_size % kMultiple != 0 || desc.intermediate_size % kMultiple != 0 || longest > kMaxRow
        || desc.num_experts > kMaxExperts || slots > INT32_MAX)
    {
        return false;
    }
    int64_t const tiles = std::max(
        weight_tiles(tile, desc.intermediate_size, 2), weight_tiles(tile, desc.hidden_size, 1));
    return max_token_tiles(slots, desc.num_experts, tile.tokens) * tiles <= INT32_MAX / 2;
}

// Index into kMoeTiles. A tile has about twice the room an average expert needs, so that nearly all experts fill one
// tile and read their weights once; from 48 tokens on that is the largest, whose multiprocessors do more arithmetic for
// each byte they read. The larger of the two largest is taken where its ring fits and its tiles are enough for all
// multiprocessors.
inline int32_t choose_moe_tile(q2export_moe_desc const& desc, Gpu const& gpu)
{
    int64_t const tokens = tokens_per_expert(desc);
    if (tokens <= 8)
    {
        return 0;
    }
    if (tokens <= 20)
    {
        return 1;
    }
    if (tokens <= 48)
    {
        return 2;
    }
    MoeTile const& largest = kMoeTiles[4];
    int64_t const token_tiles = (tokens + largest.tokens - 1) / largest.tokens * desc.num_experts;
    int64_t const fewest = token_tiles
        * std::min(weight_tiles(largest, desc.intermediate_size, 2), weight_tiles(largest, desc.hidden_size, 1));
    if (shared_bytes(largest) > gpu.shared_bytes_per_block || fewest < gpu.multiprocessors)
    {
        return 3;
    }
    return kHopperMoeIsTested && kHasSm90a && gpu.compute_capability == 90 ? 5 : 4;
}

struct MoePlan
{
    int32_t tile; // index into kMoeTiles
    // Whether the kernels of a layer after the first start while the one before them ends, which hides launches where
    // tokens are few. Each of them waits for all before it at its start, so that no result depends on it.
    bool overlaps;
};

// Nobody has run that on a GPU either; tests/gpu/moe_rates.py shows what it brings.
constexpr bool kOverlapIsTested = false;

inline MoePlan plan_moe(q2export_moe_desc const& desc, Gpu const& gpu)
{
    return {choose_moe_tile(desc, gpu), kOverlapIsTested && launches_can_overlap(gpu)};
}

// Blocks of the persistent grid, of this shared memory: what the GPU holds at once, or one for each tile there can be.
inline int64_t grid_blocks(int32_t bytes, Gpu const& gpu, int64_t most_tiles)
{
    return std::min(most_tiles, static_cast<int64_t>(gpu.multiprocessors) * blocks_per_multiprocessor(bytes, gpu));
}

// Up to this many tokens one block routes and sorts.
constexpr int64_t kFewTokens = 64;

constexpr int64_t kTokensPerRound = 32; // of a routing block: the bits of a mask
constexpr int64_t kMaxChunks = 128;

// Tokens of each routing block, where there are more than few; a multiple of kTokensPerRound.
constexpr int64_t chunk_tokens(int64_t num_tokens)
{
    int64_t const rounds = (num_tokens + kTokensPerRound - 1) / kTokensPerRound;
    return (rounds + kMaxChunks - 1) / kMaxChunks * kTokensPerRound;
}

constexpr int64_t chunk_count(int64_t num_tokens)
{
    return (num_tokens + chunk_tokens(num_tokens) - 1) / chunk_tokens(num_tokens);
}

// At least chunk_count of this and of any smaller number of tokens.
constexpr int64_t max_chunk_count(int64_t num_tokens)
{
    return std::min(kMaxChunks, (num_tokens + kTokensPerRound - 1) / kTokensPerRound);
}

} // namespace q2export
