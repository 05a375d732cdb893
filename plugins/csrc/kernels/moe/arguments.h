// Checks and workspace of Q2MoE.
#pragma once

#include "common/arguments.h"
#include "common/element.cuh"

namespace q2export
{

inline q2export_status check_moe(char const* op, q2export_moe_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(op, "desc", desc));
    Q2EXPORT_TRY(check_dtype(op, desc->dtype));
    Q2EXPORT_TRY(check_range(op, "num_tokens", desc->num_tokens, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "hidden_size", desc->hidden_size, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "intermediate_size", desc->intermediate_size, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "num_experts", desc->num_experts, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "top_k", desc->top_k, 1, desc->num_experts));
    Q2EXPORT_TRY(check_range(op, "norm_topk_prob", desc->norm_topk_prob, 0, 1));
    Q2EXPORT_TRY(check_elements(op, "hidden", desc->num_tokens, desc->hidden_size));
    return check_elements(
        op, "the activations of the experts", desc->num_tokens, desc->top_k, desc->intermediate_size);
}

// Refuses a missing pointer in one of the arrays of expert weights.
inline q2export_status check_experts(char const* op, char const* name, int32_t num_experts, void const* const* weights)
{
    Q2EXPORT_TRY(check_pointer(op, name, weights));
    for (int32_t expert = 0; expert < num_experts; ++expert)
    {
        if (weights[expert] == nullptr)
        {
            return fail(Q2EXPORT_INVALID_ARGUMENT, "%s: %s[%d] is a null pointer", op, name, expert);
        }
    }
    return Q2EXPORT_SUCCESS;
}

// The weights of one expert, on the device.
struct Expert
{
    void const* gate; // T [intermediate_size, hidden_size]
    void const* up; // T [intermediate_size, hidden_size]
    void const* down; // T [hidden_size, intermediate_size]
};

struct MoeWorkspace
{
    Expert* experts; // [num_experts]
    int32_t* chosen; // [num_tokens, top_k], best first
    float* weight; // [num_tokens, top_k]
    void* activated; // T [num_tokens, top_k, intermediate_size]
    size_t bytes;
};

inline MoeWorkspace lay_out(q2export_moe_desc const& desc, void* base)
{
    WorkspaceLayout layout(base);
    int64_t const slots = desc.num_tokens * desc.top_k;
    MoeWorkspace parts{};
    parts.experts = layout.take<Expert>(desc.num_experts);
    parts.chosen = layout.take<int32_t>(slots);
    parts.weight = layout.take<float>(slots);
    parts.activated
        = layout.take_bytes(static_cast<size_t>(slots * desc.intermediate_size) * element_size(desc.dtype));
    parts.bytes = layout.used();
    return parts;
}

} // namespace q2export
