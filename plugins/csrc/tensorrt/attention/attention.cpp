// Q2GroupQueryAttention and Q2RotaryAttention.
#include "common/op.h"

namespace q2export
{
namespace
{

q2export_attention_desc describe(Call const& call)
{
    q2export_attention_desc desc{};
    desc.batch = call.sizes[Symbol::kB];
    desc.sequence = call.sizes[Symbol::kS];
    desc.capacity = call.sizes[Symbol::kC];
    desc.num_heads = call.attributes.integer("num_heads");
    desc.num_kv_heads = call.attributes.integer("num_kv_heads");
    desc.head_dim = static_cast<int32_t>(call.sizes[Symbol::kD]);
    desc.sliding_window = call.attributes.integer("sliding_window");
    desc.dtype = call.dtype;
    desc.scale = call.attributes.number("scale");
    return desc;
}

// The seven inputs and three outputs that both ops begin with, in the order of the specification.
q2export_attention_tensors tensors_of(Buffers const& buffers)
{
    return {buffers.input(0), buffers.input(1), buffers.input(2), buffers.input(3), buffers.input(4),
        buffers.input<int64_t>(5), buffers.input<int64_t>(6), buffers.outputs[0], buffers.outputs[1],
        buffers.outputs[2]};
}

q2export_status attention_workspace_size(Call const& call, size_t* bytes)
{
    q2export_attention_desc const desc = describe(call);
    return q2export_group_query_attention_workspace_size(&desc, bytes);
}

q2export_status enqueue_attention(Call const& call, Buffers const& buffers)
{
    q2export_attention_desc const desc = describe(call);
    q2export_attention_tensors const tensors = tensors_of(buffers);
    return q2export_group_query_attention(
        &desc, &tensors, buffers.workspace, buffers.workspace_bytes, buffers.stream);
}

q2export_status rotary_attention_workspace_size(Call const& call, size_t* bytes)
{
    q2export_attention_desc const desc = describe(call);
    return q2export_rotary_attention_workspace_size(&desc, bytes);
}

q2export_status enqueue_rotary_attention(Call const& call, Buffers const& buffers)
{
    q2export_attention_desc const desc = describe(call);
    q2export_attention_tensors const tensors = tensors_of(buffers);
    return q2export_rotary_attention(&desc, &tensors, buffers.input<float>(7),
        call.attributes.number("attention_factor"), buffers.workspace, buffers.workspace_bytes, buffers.stream);
}

constexpr Tie kTies[] = {{Symbol::kHq, "num_heads"}, {Symbol::kHkv, "num_kv_heads"}};

} // namespace

Op const kGroupQueryAttention{kGroupQueryAttentionSpec, kTies, attention_workspace_size, enqueue_attention};
Op const kRotaryAttention{
    kRotaryAttentionSpec, kTies, rotary_attention_workspace_size, enqueue_rotary_attention};

} // namespace q2export
