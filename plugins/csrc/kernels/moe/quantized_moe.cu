// Q2QuantizedMoE: which kernels take a call.
#include <algorithm>
#include <type_traits>

#include "common/launch.cuh"
#include "common/vector.cuh"
#include "moe/fast.h"
#include "moe/quantized_fast.h"
#include "moe/quantized_reference.cuh"

namespace q2export
{
namespace
{

constexpr char kOp[] = "quantized_moe";

q2export_status check_one_of(char const* name, int32_t value, std::initializer_list<int32_t> choices)
{
    if (std::find(choices.begin(), choices.end(), value) != choices.end())
    {
        return Q2EXPORT_SUCCESS;
    }
    return choices.size() == 2
        ? fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is %d, expected 4 or 8", kOp, name, value)
        : fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s is %d, expected 32, 64 or 128", kOp, name, value);
}

q2export_status check_quantized_moe(q2export_quantized_moe_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(kOp, "desc", desc));
    Q2EXPORT_TRY(check_moe(kOp, &desc->moe));
    Q2EXPORT_TRY(check_one_of("bits", desc->bits, {4, 8}));
    Q2EXPORT_TRY(check_one_of("block_size", desc->block_size, {32, 64, 128}));
    Q2EXPORT_TRY(check_multiple(kOp, "hidden_size", desc->moe.hidden_size, desc->block_size));
    return check_multiple(kOp, "intermediate_size", desc->moe.intermediate_size, desc->block_size);
}

bool is_fast(QuantizedMoeCall const& call, Gpu const& gpu, MoeTile const& tile)
{
    q2export_moe_desc const& desc = call.desc;
    return desc.dtype != Q2EXPORT_FLOAT32 && shared_bytes(tile, call.bits) <= gpu.shared_bytes_per_block
        && desc.hidden_size % kQuantizedMultiple == 0 && desc.intermediate_size % kQuantizedMultiple == 0
        && are_fast_sizes(desc, tile);
}

// The fast kernels copy vectors.
q2export_status check_alignment(QuantizedMoeCall const& call)
{
    Q2EXPORT_TRY(check_aligned(kOp, "hidden", call.hidden));
    Q2EXPORT_TRY(check_aligned(kOp, "gate_up", call.gate_up));
    Q2EXPORT_TRY(check_aligned(kOp, "gate_up_scale", call.gate_up_scale));
    Q2EXPORT_TRY(check_aligned(kOp, "down", call.down));
    Q2EXPORT_TRY(check_aligned(kOp, "down_scale", call.down_scale));
    return check_aligned(kOp, "output", call.output);
}

} // namespace

q2export_status run_quantized_moe(
    QuantizedMoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan)
{
    MoeTile const& tile = kQuantizedMoeTiles[plan.tile];
    if (!is_fast(call, gpu, tile))
    {
        return with_element_type(call.desc.dtype, [&](auto* type) {
            return quantized_moe_reference<std::remove_pointer_t<decltype(type)>>(call, parts);
        });
    }
    Q2EXPORT_TRY(check_alignment(call));
    Q2EXPORT_TRY(route_and_sort(call, parts, tile.tokens, plan.overlaps));
    return call.desc.dtype == Q2EXPORT_FLOAT16 ? multiply_quantized_experts<__half>(call, parts, gpu, plan)
                                               : multiply_quantized_experts<__nv_bfloat16>(call, parts, gpu, plan);
}

} // namespace q2export

extern "C" q2export_status q2export_quantized_moe_workspace_size(
    q2export_quantized_moe_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_quantized_moe(desc));
    Q2EXPORT_TRY(check_pointer(kOp, "bytes", bytes));
    *bytes = lay_out(desc->moe, nullptr).bytes;
    return Q2EXPORT_SUCCESS;
}

extern "C" q2export_status q2export_quantized_moe(q2export_quantized_moe_desc const* desc, void const* hidden,
    void const* router_logits, void const* gate_up, void const* gate_up_scale, void const* down,
    void const* down_scale, void* output, void* workspace, size_t workspace_bytes, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_quantized_moe(desc));
    if (desc->moe.num_tokens == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "hidden", hidden));
    Q2EXPORT_TRY(check_pointer(kOp, "router_logits", router_logits));
    Q2EXPORT_TRY(check_pointer(kOp, "gate_up", gate_up));
    Q2EXPORT_TRY(check_pointer(kOp, "gate_up_scale", gate_up_scale));
    Q2EXPORT_TRY(check_pointer(kOp, "down", down));
    Q2EXPORT_TRY(check_pointer(kOp, "down_scale", down_scale));
    Q2EXPORT_TRY(check_pointer(kOp, "output", output));
    MoeWorkspace const parts = lay_out(desc->moe, workspace);
    Q2EXPORT_TRY(check_workspace(kOp, parts.bytes, workspace, workspace_bytes));
    Gpu gpu{};
    Q2EXPORT_TRY(current_gpu(&gpu));
    QuantizedMoeCall const call{{desc->moe, router_logits, stream}, desc->bits, desc->block_size, hidden,
        static_cast<unsigned char const*>(gate_up), gate_up_scale, static_cast<unsigned char const*>(down), down_scale,
        output};
    return run_quantized_moe(call, parts, gpu, plan_quantized_moe(*desc, gpu));
}
