// Q2MoE for what the fast kernels do not take: route, then one thread per activation of a chosen expert, then one per
// output element. Slow.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/element.cuh"
#include "common/launch.cuh"
#include "moe/route.cuh"

namespace q2export
{

template <typename Element>
__global__ void reference_route_kernel(
    q2export_moe_desc desc, Element const* router_logits, int32_t* chosen, float* weight)
{
    int64_t const token = element_index() / kWarp;
    if (token < desc.num_tokens) // the same for a whole warp
    {
        route_token<0>(desc, router_logits + token * desc.num_experts, threadIdx.x % kWarp,
            chosen + token * desc.top_k, weight + token * desc.top_k);
    }
}

template <typename Element>
__device__ float dot(Element const* a, Element const* b, int32_t length)
{
    float sum = 0.0F;
    for (int32_t i = 0; i < length; ++i)
    {
        sum += load(a + i) * load(b + i);
    }
    return sum;
}

// activated = silu(gate x) * (up x), rounded to T once.
template <typename Element>
__global__ void reference_activate_kernel(
    q2export_moe_desc desc, Element const* hidden, Expert const* experts, int32_t const* chosen, Element* activated)
{
    int64_t const index = element_index(); // [num_tokens, top_k, intermediate_size]
    int64_t const slot = index / desc.intermediate_size;
    int64_t const token = slot / desc.top_k;
    if (token >= desc.num_tokens)
    {
        return;
    }
    Expert const expert = experts[chosen[slot]];
    int64_t const row = index % desc.intermediate_size * desc.hidden_size;
    Element const* const x = hidden + token * desc.hidden_size;
    float const gate = dot(static_cast<Element const*>(expert.gate) + row, x, desc.hidden_size);
    float const up = dot(static_cast<Element const*>(expert.up) + row, x, desc.hidden_size);
    store(activated + index, gate / (1.0F + expf(-gate)) * up);
}

// output = sum over the slots, in order, of weight * (down activated): the same bits in every run.
template <typename Element>
__global__ void reference_combine_kernel(q2export_moe_desc desc, Element const* activated, Expert const* experts,
    int32_t const* chosen, float const* weight, Element* output)
{
    int64_t const index = element_index(); // [num_tokens, hidden_size]
    int64_t const token = index / desc.hidden_size;
    if (token >= desc.num_tokens)
    {
        return;
    }
    int64_t const row = index % desc.hidden_size * desc.intermediate_size;
    float sum = 0.0F;
    for (int64_t slot = token * desc.top_k; slot < (token + 1) * desc.top_k; ++slot)
    {
        Element const* const down = static_cast<Element const*>(experts[chosen[slot]].down) + row;
        sum += weight[slot] * dot(down, activated + slot * desc.intermediate_size, desc.intermediate_size);
    }
    store(output + index, sum);
}

template <typename Element>
q2export_status moe_reference(MoeCall const& call, MoeWorkspace const& parts)
{
    q2export_moe_desc const& desc = call.desc;
    Element* const activated = static_cast<Element*>(parts.activated);
    Expert const* const experts = parts.experts;
    int32_t const* const chosen = parts.chosen;
    float const* const weight = parts.weight;
    Q2EXPORT_TRY(launch(call.stream, one_thread_each(desc.num_tokens * kWarp), reference_route_kernel<Element>, desc,
        static_cast<Element const*>(call.router_logits), parts.chosen, parts.weight));
    Q2EXPORT_TRY(launch(call.stream, one_thread_each(desc.num_tokens * desc.top_k * desc.intermediate_size),
        reference_activate_kernel<Element>, desc, static_cast<Element const*>(call.hidden), experts, chosen,
        activated));
    return launch(call.stream, one_thread_each(desc.num_tokens * desc.hidden_size), reference_combine_kernel<Element>,
        desc, activated, experts, chosen, weight, static_cast<Element*>(call.output));
}

} // namespace q2export
