// The router of Q2MoE and the sort of its slots.
#include <algorithm>
#include <type_traits>

#include "common/launch.cuh"
#include "moe/fast.h"
#include "moe/sort.cuh"

namespace q2export
{
namespace
{

template <int kPerLane>
q2export_status queue(RouterCall const& call, SortArguments const& arguments, bool overlaps)
{
    int64_t const tokens = call.desc.num_tokens;
    bool const is_one_block = tokens <= kFewTokens;
    LaunchShape shape{is_one_block ? 1 : arguments.chunks};
    shape.threads = is_one_block ? kWarp * static_cast<int>(std::min(tokens, kTokensPerRound)) : 256;
    shape.shared_bytes = counter_bytes(call.desc.num_experts);
    Q2EXPORT_TRY(with_element_type(call.desc.dtype, [&](auto* type) {
        using Element = std::remove_pointer_t<decltype(type)>;
        auto* const kernel = is_one_block ? route_and_sort_kernel<kPerLane, Element> : route_kernel<kPerLane, Element>;
        return launch(call.stream, shape, kernel, arguments);
    }));
    shape.overlaps_previous = overlaps;
    return is_one_block ? Q2EXPORT_SUCCESS : launch(call.stream, shape, sort_kernel, arguments);
}

} // namespace

q2export_status route_and_sort(
    RouterCall const& call, MoeWorkspace const& parts, int32_t tile_tokens, bool overlaps)
{
    SortArguments arguments{};
    arguments.desc = call.desc;
    arguments.router_logits = call.router_logits;
    arguments.parts = parts;
    arguments.chunk = static_cast<int32_t>(chunk_tokens(call.desc.num_tokens));
    arguments.chunks = static_cast<int32_t>(chunk_count(call.desc.num_tokens));
    arguments.tile_tokens = tile_tokens;
    if (call.desc.num_experts <= 2 * kWarp)
    {
        return queue<2>(call, arguments, overlaps);
    }
    return call.desc.num_experts <= 8 * kWarp ? queue<8>(call, arguments, overlaps)
                                              : queue<0>(call, arguments, overlaps);
}

} // namespace q2export
