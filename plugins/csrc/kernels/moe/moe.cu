// Q2MoE, reference: route, then one thread per activation of a chosen expert, then one per output element.
#include <algorithm>
#include <type_traits>

#include "common/launch.cuh"
#include "moe/arguments.h"
#include "moe/route.cuh"

namespace q2export
{
namespace
{

constexpr char kOp[] = "moe";

// Expert pointers travel as kernel arguments, a chunk at a time: a copy from host memory would not outlive the call
// when a CUDA graph replays it.
constexpr int32_t kExpertsPerLaunch = 64;

struct ExpertChunk
{
    Expert experts[kExpertsPerLaunch];
};

__global__ void store_experts_kernel(ExpertChunk const chunk, int32_t count, Expert* experts)
{
    for (int32_t e = threadIdx.x; e < count; e += blockDim.x)
    {
        experts[e] = chunk.experts[e];
    }
}

q2export_status store_experts(q2export_moe_desc const& desc, void const* const* gate, void const* const* up,
    void const* const* down, Expert* experts, q2export_stream stream)
{
    for (int32_t first = 0; first < desc.num_experts; first += kExpertsPerLaunch)
    {
        int32_t const count = std::min(kExpertsPerLaunch, desc.num_experts - first);
        ExpertChunk chunk{};
        for (int32_t e = 0; e < count; ++e)
        {
            chunk.experts[e] = {gate[first + e], up[first + e], down[first + e]};
        }
        Q2EXPORT_TRY(launch(stream, LaunchShape{1}, store_experts_kernel, chunk, count, experts + first));
    }
    return Q2EXPORT_SUCCESS;
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
__global__ void activate_kernel(
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
__global__ void combine_kernel(q2export_moe_desc desc, Element const* activated, Expert const* experts,
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
q2export_status compute(q2export_moe_desc const& desc, Element const* hidden, Element const* router_logits,
    MoeWorkspace const& parts, Element* output, q2export_stream stream)
{
    Element* const activated = static_cast<Element*>(parts.activated);
    Expert const* const experts = parts.experts;
    int32_t const* const chosen = parts.chosen;
    float const* const weight = parts.weight;
    int64_t const activations = desc.num_tokens * desc.top_k * desc.intermediate_size;
    Q2EXPORT_TRY(launch(
        stream, one_thread_each(desc.num_tokens), route_kernel<Element>, desc, router_logits, parts.chosen, parts.weight));
    Q2EXPORT_TRY(
        launch(stream, one_thread_each(activations), activate_kernel<Element>, desc, hidden, experts, chosen, activated));
    return launch(stream, one_thread_each(desc.num_tokens * desc.hidden_size), combine_kernel<Element>, desc, activated,
        experts, chosen, weight, output);
}

} // namespace
} // namespace q2export

extern "C" q2export_status q2export_moe_workspace_size(q2export_moe_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_moe(kOp, desc));
    Q2EXPORT_TRY(check_pointer(kOp, "bytes", bytes));
    *bytes = lay_out(*desc, nullptr).bytes;
    return Q2EXPORT_SUCCESS;
}

extern "C" q2export_status q2export_moe(q2export_moe_desc const* desc, void const* hidden, void const* router_logits,
    void const* const* gate, void const* const* up, void const* const* down, void* output, void* workspace,
    size_t workspace_bytes, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_moe(kOp, desc));
    if (desc->num_tokens == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "hidden", hidden));
    Q2EXPORT_TRY(check_pointer(kOp, "router_logits", router_logits));
    Q2EXPORT_TRY(check_experts(kOp, "gate", desc->num_experts, gate));
    Q2EXPORT_TRY(check_experts(kOp, "up", desc->num_experts, up));
    Q2EXPORT_TRY(check_experts(kOp, "down", desc->num_experts, down));
    Q2EXPORT_TRY(check_pointer(kOp, "output", output));
    MoeWorkspace const parts = lay_out(*desc, workspace);
    Q2EXPORT_TRY(check_workspace(kOp, parts.bytes, workspace, workspace_bytes));
    Q2EXPORT_TRY(store_experts(*desc, gate, up, down, parts.experts, stream));
    return with_element_type(desc->dtype, [&](auto* type) {
        using Element = std::remove_pointer_t<decltype(type)>;
        return compute(*desc, static_cast<Element const*>(hidden), static_cast<Element const*>(router_logits), parts,
            static_cast<Element*>(output), stream);
    });
}
