// The weighted sum over a token's experts.
#pragma once

#include <cstdint>

#include "common/launch.cuh"
#include "common/ptx.cuh"
#include "moe/arguments.h"

namespace q2export
{

constexpr int kCombined = 8; // elements of a thread: 16 bytes

// output = sum over the token's slots, in order, of weight * result: the same bits in every run.
template <typename Element>
__global__ void __launch_bounds__(kThreads) combine_kernel(
    q2export_moe_desc desc, Element const* results, float const* weight, Element* output)
{
    wait_for_previous_kernel();
    int64_t const index = element_index(); // [num_tokens, hidden_size / kCombined]
    int32_t const per_token = desc.hidden_size / kCombined;
    int64_t const token = index / per_token;
    if (token >= desc.num_tokens)
    {
        return;
    }
    int64_t const first_slot = token * desc.top_k;
    Element const* const column = results + index % per_token * kCombined;
    float sums[kCombined] = {};
#pragma unroll 4
    for (int32_t i = 0; i < desc.top_k; ++i)
    {
        uint4 const loaded = *reinterpret_cast<uint4 const*>(column + (first_slot + i) * desc.hidden_size);
        uint32_t const pairs[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
        float const slot_weight = weight[first_slot + i];
#pragma unroll
        for (int k = 0; k < 4; ++k)
        {
            float2 const pair = unpack2<Element>(pairs[k]);
            sums[2 * k] += slot_weight * pair.x;
            sums[2 * k + 1] += slot_weight * pair.y;
        }
    }
    uint4 const rounded = make_uint4(pack2<Element>(sums[0], sums[1]), pack2<Element>(sums[2], sums[3]),
        pack2<Element>(sums[4], sums[5]), pack2<Element>(sums[6], sums[7]));
    *reinterpret_cast<uint4*>(output + index * kCombined) = rounded;
}

// Queues it.
template <typename Element>
q2export_status combine_slots(RouterCall const& call, MoeWorkspace const& parts, void* output, bool overlaps)
{
    LaunchShape shape = one_thread_each(call.desc.num_tokens * (call.desc.hidden_size / kCombined));
    shape.overlaps_previous = overlaps;
    return launch(call.stream, shape, combine_kernel<Element>, call.desc, static_cast<Element const*>(parts.results),
        static_cast<float const*>(parts.weight), static_cast<Element*>(output));
}

} // namespace q2export
