// The products and the sum of Q2MoE, for one element type.
#pragma once

#include "common/launch.cuh"
#include "moe/combine.cuh"
#include "moe/fast.h"
#include "moe/grouped_product.cuh"

namespace q2export
{

inline ProductArguments product_arguments(MoeCall const& call, MoeWorkspace const& parts)
{
    ProductArguments arguments{};
    if (call.desc.num_experts > kExpertsByValue)
    {
        arguments.table = parts.experts;
    }
    for (int32_t e = 0; arguments.table == nullptr && e < call.desc.num_experts; ++e)
    {
        arguments.experts[e] = {call.gate[e], call.up[e], call.down[e]};
    }
    arguments.sorted = parts.sorted;
    arguments.tiles = parts.tiles;
    arguments.tile_count = parts.tile_count;
    arguments.top_k = call.desc.top_k;
    return arguments;
}

template <typename Element>
q2export_status multiply_experts(
    MoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan)
{
    q2export_moe_desc const& desc = call.desc;
    ProductArguments up = product_arguments(call, parts);
    up.tokens = call.hidden;
    up.outputs = parts.activated;
    up.rows = desc.intermediate_size;
    up.depth = desc.hidden_size;
    ProductArguments down = up;
    down.tokens = parts.activated;
    down.outputs = parts.results;
    down.rows = desc.hidden_size;
    down.depth = desc.intermediate_size;
    int64_t const token_tiles
        = max_token_tiles(desc.num_tokens * desc.top_k, desc.num_experts, kMoeTiles[plan.tile].tokens);
    Q2EXPORT_TRY(with_index<kMoeTileCount>(plan.tile, [&](auto index) {
        constexpr int kTile = decltype(index)::value;
        Q2EXPORT_TRY((launch_product<Product<Element, kTile, true>>(call.stream, up, gpu, plan, token_tiles)));
        return launch_product<Product<Element, kTile, false>>(call.stream, down, gpu, plan, token_tiles);
    }));
    return combine_slots<Element>(call, parts, call.output, plan.overlaps);
}

} // namespace q2export
