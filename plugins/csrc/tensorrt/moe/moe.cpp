// Q2MoE.
#include <vector>

#include "common/op.h"

namespace q2export
{
namespace
{

q2export_moe_desc describe(Call const& call)
{
    q2export_moe_desc desc{};
    desc.num_tokens = call.sizes[Symbol::kT];
    desc.hidden_size = static_cast<int32_t>(call.sizes[Symbol::kH]);
    desc.intermediate_size = static_cast<int32_t>(call.sizes[Symbol::kI]);
    desc.num_experts = call.attributes.integer("num_experts");
    desc.top_k = call.attributes.integer("top_k");
    desc.norm_topk_prob = call.attributes.integer("norm_topk_prob");
    desc.dtype = call.dtype;
    return desc;
}

q2export_status workspace_size(Call const& call, size_t* bytes)
{
    q2export_moe_desc const desc = describe(call);
    return q2export_moe_workspace_size(&desc, bytes);
}

q2export_status enqueue(Call const& call, Buffers const& buffers)
{
    q2export_moe_desc const desc = describe(call);
    int32_t const fixed = kMoESpec.inputs.size();
    int32_t const kinds = kMoESpec.repeated.size();
    // Inputs come expert by expert, the kernels want them kind by kind.
    std::vector<void const*> weights(static_cast<size_t>(kinds) * desc.num_experts);
    for (int32_t i = 0; i < kinds * desc.num_experts; ++i)
    {
        weights[static_cast<size_t>(i % kinds) * desc.num_experts + i / kinds] = buffers.input(fixed + i);
    }
    void const* const* const gate = weights.data();
    void const* const* const up = gate + desc.num_experts;
    void const* const* const down = up + desc.num_experts;
    return q2export_moe(&desc, buffers.input(0), buffers.input(1), gate, up, down, buffers.outputs[0],
        buffers.workspace, buffers.workspace_bytes, buffers.stream);
}

constexpr Tie kTies[] = {{Symbol::kE, "num_experts"}};

} // namespace

Op const kMoE{kMoESpec, kTies, workspace_size, enqueue};

} // namespace q2export
