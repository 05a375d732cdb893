// Q2QuantizedMoE.
#include "common/log.h"
#include "common/op.h"

namespace q2export
{
namespace
{

q2export_quantized_moe_desc describe(Call const& call)
{
    q2export_quantized_moe_desc desc{};
    desc.moe.num_tokens = call.sizes[Symbol::kT];
    desc.moe.hidden_size = static_cast<int32_t>(call.sizes[Symbol::kH]);
    desc.moe.intermediate_size = static_cast<int32_t>(call.sizes[Symbol::kI]);
    desc.moe.num_experts = call.attributes.integer("num_experts");
    desc.moe.top_k = call.attributes.integer("top_k");
    desc.moe.norm_topk_prob = call.attributes.integer("norm_topk_prob");
    desc.moe.dtype = call.dtype;
    desc.bits = call.attributes.integer("bits");
    desc.block_size = call.attributes.integer("block_size");
    return desc;
}

q2export_status workspace_size(Call const& call, size_t* bytes)
{
    q2export_quantized_moe_desc const desc = describe(call);
    return q2export_quantized_moe_workspace_size(&desc, bytes);
}

q2export_status enqueue(Call const& call, Buffers const& buffers)
{
    q2export_quantized_moe_desc const desc = describe(call);
    return q2export_quantized_moe(&desc, buffers.input(0), buffers.input(1), buffers.input(2), buffers.input(3),
        buffers.input(4), buffers.input(5), buffers.outputs[0], buffers.workspace, buffers.workspace_bytes,
        buffers.stream);
}

// The hidden and the intermediate size by the words and the scales of a row; the symbol of the words counts them.
void relate(Sizes& sizes, Attributes const& attributes)
{
    int64_t const codes_in_word = 32 / attributes.integer("bits");
    int64_t const block_size = attributes.integer("block_size");
    unify(sizes[Symbol::kH], sizes[Symbol::kHTimesBitsOver8] * codes_in_word,
        [] { return std::string("hidden_size by the words of gate_up"); });
    unify(sizes[Symbol::kH], sizes[Symbol::kHOverBlockSize] * block_size,
        [] { return std::string("hidden_size by gate_up_scale"); });
    unify(sizes[Symbol::kI], sizes[Symbol::kITimesBitsOver8] * codes_in_word,
        [] { return std::string("intermediate_size by the words of down"); });
    unify(sizes[Symbol::kI], sizes[Symbol::kIOverBlockSize] * block_size,
        [] { return std::string("intermediate_size by down_scale"); });
    unify(sizes[Symbol::k2TimesI], sizes[Symbol::kI] * 2,
        [] { return std::string("twice the intermediate_size of down"); });
}

constexpr Tie kTies[] = {{Symbol::kE, "num_experts"}};

} // namespace

Op const kQuantizedMoE{kQuantizedMoESpec, kTies, workspace_size, enqueue, relate};

} // namespace q2export
