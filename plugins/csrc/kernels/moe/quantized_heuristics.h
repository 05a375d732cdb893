// How Q2QuantizedMoE cuts its work up. As in heuristics.h, but a stage holds 64 bytes of codes of each row: a quarter or
// half of the bytes that 16-bit weights take for as many elements, beside tokens of 16 bits.
#pragma once

#include <cstdint>

#include "moe/heuristics.h"

namespace q2export
{

constexpr int32_t kCodeRowBytes = 64; // of a row in a stage
constexpr int32_t kQuantizedMultiple = 128; // of both sizes of an expert, for the fast kernels: whole steps, whole blocks

// Few tokens to an expert first. The last is for codes of 4 bits alone: those of 8 want more registers than there are.
// (So would 128 tokens of 4-bit codes.)
inline constexpr MoeTile kQuantizedMoeTiles[] = {
    {64, 16, 4, 1, 8, false},
    {128, 32, 4, 1, 4, false},
    {128, 64, 2, 2, 3, false},
    {256, 96, 4, 2, 3, false},
};

constexpr int32_t quantized_moe_tiles(int32_t bits)
{
    return bits == 4 ? 4 : 3;
}

// Elements of the inner dimension per stage.
constexpr int32_t step_depth(int32_t bits)
{
    return kCodeRowBytes * 8 / bits;
}

// Of a row, in a stage: all scales of a step in blocks of 32; where blocks are larger, less of it is used.
constexpr int32_t scale_bytes(int32_t bits)
{
    return step_depth(bits) / 32 * 2;
}

constexpr int32_t stage_bytes(MoeTile const& tile, int32_t bits)
{
    return tile.weight_rows * (kCodeRowBytes + scale_bytes(bits)) + tile.tokens * step_depth(bits) * kElementBytes;
}

constexpr int32_t shared_bytes(MoeTile const& tile, int32_t bits)
{
    return tile.stages * stage_bytes(tile, bits);
}

// Index into kQuantizedMoeTiles, by the same reasoning as choose_moe_tile. Where the largest does not fit, on GPUs whose
// tensor cores have a quarter to half of the rate, L2 keeps up with the one before it.
inline int32_t choose_quantized_moe_tile(q2export_quantized_moe_desc const& desc, Gpu const& gpu)
{
    int64_t const tokens = tokens_per_expert(desc.moe);
    if (tokens <= 8)
    {
        return 0;
    }
    if (tokens <= 20)
    {
        return 1;
    }
    MoeTile const& largest = kQuantizedMoeTiles[3];
    int64_t const token_tiles = (tokens + largest.tokens - 1) / largest.tokens * desc.moe.num_experts;
    int64_t const fewest = token_tiles
        * std::min(weight_tiles(largest, desc.moe.intermediate_size, 2), weight_tiles(largest, desc.moe.hidden_size, 1));
    bool const fits = shared_bytes(largest, desc.bits) <= gpu.shared_bytes_per_block;
    return desc.bits == 4 && tokens > 48 && fits && fewest >= gpu.multiprocessors ? 3 : 2;
}

inline MoePlan plan_quantized_moe(q2export_quantized_moe_desc const& desc, Gpu const& gpu)
{
    return {choose_quantized_moe_tile(desc, gpu), kOverlapIsTested && launches_can_overlap(gpu)};
}

} // namespace q2export
