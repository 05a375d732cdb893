// The products and the sum of Q2QuantizedMoE, for one element type.
#pragma once

#include "common/launch.cuh"
#include "moe/combine.cuh"
#include "moe/grouped_product.cuh"
#include "moe/quantized_fast.h"
#include "moe/quantized_multiply.cuh"

namespace q2export
{

template <typename Element, int kBits>
q2export_status multiply_packed(
    QuantizedMoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan)
{
    q2export_moe_desc const& desc = call.desc;
    QuantizedArguments up{};
    up.tokens = call.hidden;
    up.outputs = parts.activated;
    up.sorted = parts.sorted;
    up.tiles = parts.tiles;
    up.tile_count = parts.tile_count;
    up.rows = desc.intermediate_size;
    up.depth = desc.hidden_size;
    up.top_k = desc.top_k;
    up.codes = call.gate_up;
    up.scales = static_cast<unsigned char const*>(call.gate_up_scale);
    up.block_shift = call.block_size == 32 ? 5 : call.block_size == 64 ? 6 : 7;
    QuantizedArguments down = up;
    down.tokens = parts.activated;
    down.outputs = parts.results;
    down.rows = desc.hidden_size;
    down.depth = desc.intermediate_size;
    down.codes = call.down;
    down.scales = static_cast<unsigned char const*>(call.down_scale);
    int64_t const token_tiles
        = max_token_tiles(desc.num_tokens * desc.top_k, desc.num_experts, kQuantizedMoeTiles[plan.tile].tokens);
    return with_index<quantized_moe_tiles(kBits)>(plan.tile, [&](auto index) {
        constexpr int kTile = decltype(index)::value;
        using Up = QuantizedProduct<Element, kBits, kTile, true>;
        using Down = QuantizedProduct<Element, kBits, kTile, false>;
        Q2EXPORT_TRY(launch_product<Up>(call.stream, up, gpu, plan, token_tiles));
        return launch_product<Down>(call.stream, down, gpu, plan, token_tiles);
    });
}

template <typename Element>
q2export_status multiply_quantized_experts(
    QuantizedMoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan)
{
    Q2EXPORT_TRY((call.bits == 4 ? multiply_packed<Element, 4>(call, parts, gpu, plan)
                                 : multiply_packed<Element, 8>(call, parts, gpu, plan)));
    return combine_slots<Element>(call, parts, call.output, plan.overlaps);
}

} // namespace q2export
