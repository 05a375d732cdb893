// Q2RotaryEmbedding.
#include "common/op.h"

namespace q2export
{
namespace
{

q2export_rotary_desc describe(Call const& call)
{
    q2export_rotary_desc desc{};
    desc.batch = call.sizes[Symbol::kB];
    desc.sequence = call.sizes[Symbol::kS];
    desc.num_heads = static_cast<int32_t>(call.sizes[Symbol::kHq]);
    desc.head_dim = static_cast<int32_t>(call.sizes[Symbol::kD]);
    desc.dtype = call.dtype;
    desc.attention_factor = call.attributes.number("attention_factor");
    return desc;
}

q2export_status workspace_size(Call const& call, size_t* bytes)
{
    q2export_rotary_desc const desc = describe(call);
    return q2export_rotary_embedding_workspace_size(&desc, bytes);
}

q2export_status enqueue(Call const& call, Buffers const& buffers)
{
    q2export_rotary_desc const desc = describe(call);
    return q2export_rotary_embedding(&desc, buffers.input(0), buffers.input<int64_t>(1), buffers.input<float>(2),
        buffers.outputs[0], buffers.workspace, buffers.workspace_bytes, buffers.stream);
}

} // namespace

Op const kRotaryEmbedding{kRotaryEmbeddingSpec, {}, workspace_size, enqueue};

} // namespace q2export
