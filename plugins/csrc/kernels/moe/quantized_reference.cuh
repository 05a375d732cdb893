// Q2QuantizedMoE for what the fast kernels do not take: as reference.cuh, over packed weights. Slow.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/element.cuh"
#include "common/launch.cuh"
#include "moe/quantized_fast.h"
#include "moe/reference.cuh"

namespace q2export
{

// Packed matrices of all experts.
struct PackedMatrices
{
    unsigned char const* codes;
    __half const* scales;
    int32_t bits;
    int32_t block_size;
};

// Row `row`, counted from the first expert's, times x [depth].
template <typename Element>
__device__ float packed_dot(PackedMatrices const& weights, int64_t row, Element const* x, int32_t depth)
{
    unsigned char const* const codes = weights.codes + row * depth * weights.bits / 8;
    __half const* const scales = weights.scales + row * (depth / weights.block_size);
    float sum = 0.0F;
    for (int32_t first = 0; first < depth; first += weights.block_size)
    {
        float of_block = 0.0F;
        for (int32_t i = first; i < first + weights.block_size; ++i)
        {
            int const code = weights.bits == 8 ? codes[i] - 128 : (codes[i / 2] >> i % 2 * 4 & 15) - 8;
            of_block += static_cast<float>(code) * load(x + i);
        }
        sum += load(scales + first / weights.block_size) * of_block;
    }
    return sum;
}

// activated = silu(gate x) * (up x), rounded to T once.
template <typename Element>
__global__ void reference_packed_activate_kernel(q2export_moe_desc desc, Element const* hidden, PackedMatrices gate_up,
    int32_t const* chosen, Element* activated)
{
    int64_t const index = element_index(); // [num_tokens, top_k, intermediate_size]
    int64_t const slot = index / desc.intermediate_size;
    int64_t const token = slot / desc.top_k;
    if (token >= desc.num_tokens)
    {
        return;
    }
    int64_t const row = (static_cast<int64_t>(chosen[slot]) * desc.intermediate_size + index % desc.intermediate_size) * 2;
    Element const* const x = hidden + token * desc.hidden_size;
    float const gate = packed_dot(gate_up, row, x, desc.hidden_size);
    float const up = packed_dot(gate_up, row + 1, x, desc.hidden_size);
    store(activated + index, gate / (1.0F + expf(-gate)) * up);
}

// output = sum over the slots, in order, of weight * (down activated): the same bits in every run.
template <typename Element>
__global__ void reference_packed_combine_kernel(q2export_moe_desc desc, Element const* activated, PackedMatrices down,
    int32_t const* chosen, float const* weight, Element* output)
{
    int64_t const index = element_index(); // [num_tokens, hidden_size]
    int64_t const token = index / desc.hidden_size;
    if (token >= desc.num_tokens)
    {
        return;
    }
    float sum = 0.0F;
    for (int64_t slot = token * desc.top_k; slot < (token + 1) * desc.top_k; ++slot)
    {
        int64_t const row = static_cast<int64_t>(chosen[slot]) * desc.hidden_size + index % desc.hidden_size;
        Element const* const x = activated + slot * desc.intermediate_size;
        sum += weight[slot] * packed_dot(down, row, x, desc.intermediate_size);
    }
    store(output + index, sum);
}

template <typename Element>
q2export_status quantized_moe_reference(QuantizedMoeCall const& call, MoeWorkspace const& parts)
{
    q2export_moe_desc const& desc = call.desc;
    PackedMatrices const gate_up{
        call.gate_up, static_cast<__half const*>(call.gate_up_scale), call.bits, call.block_size};
    PackedMatrices const down{call.down, static_cast<__half const*>(call.down_scale), call.bits, call.block_size};
    Element* const activated = static_cast<Element*>(parts.activated);
    int32_t const* const chosen = parts.chosen;
    float const* const weight = parts.weight;
    Q2EXPORT_TRY(launch(call.stream, one_thread_each(desc.num_tokens * kWarp), reference_route_kernel<Element>, desc,
        static_cast<Element const*>(call.router_logits), parts.chosen, parts.weight));
    Q2EXPORT_TRY(launch(call.stream, one_thread_each(desc.num_tokens * desc.top_k * desc.intermediate_size),
        reference_packed_activate_kernel<Element>, desc, static_cast<Element const*>(call.hidden), gate_up, chosen,
        activated));
    return launch(call.stream, one_thread_each(desc.num_tokens * desc.hidden_size),
        reference_packed_combine_kernel<Element>, desc, activated, down, chosen, weight,
        static_cast<Element*>(call.output));
}

} // namespace q2export
