// Checks and workspace of Q2MoE.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/arguments.h"
#include "common/element.cuh"
#include "moe/heuristics.h"

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
    Q2EXPORT_TRY(check_elements(op, "the results of the experts", desc->num_tokens, desc->top_k, desc->hidden_size));
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

// What routing takes.
struct RouterCall
{
    q2export_moe_desc desc;
    void const* router_logits;
    q2export_stream stream;
};

// A call of q2export_moe, checked.
struct MoeCall : RouterCall
{
    void const* hidden;
    void const* const* gate;
    void const* const* up;
    void const* const* down;
    void* output;
};

// Experts whose pointers are kernel parameters: 3 KiB of the 4 KiB that all GPUs and drivers take.
constexpr int32_t kExpertsByValue = 128;

// The weights of one expert, on the device.
struct Expert
{
    void const* gate; // T [intermediate_size, hidden_size]
    void const* up; // T [intermediate_size, hidden_size]
    void const* down; // T [hidden_size, intermediate_size]
};

// Some tokens of one expert, in the order of the sorted slots. All tiles of an expert say the same of it, so that any
// of them leads to the others.
struct alignas(16) TokenTile
{
    int32_t expert;
    int32_t first_tile; // of the expert, in the list of tiles
    int32_t tiles; // of the expert
    int32_t first_position; // of the expert's slots
    int32_t slots; // of the expert
};

// A slot is one choice of one token: slot token * top_k + i is its i-th best expert. A position is a place in the order
// of slots sorted by expert, and by slot within an expert.
struct MoeWorkspace
{
    Expert* experts; // [num_experts], of layers with many experts and of the reference kernels
    int32_t* chosen; // [slots]: expert
    float* weight; // [slots]
    int32_t* rank; // [slots]: place among the slots of the same expert and chunk of tokens
    int32_t* histogram; // [chunks, num_experts]
    int32_t* sorted; // [positions]: slot
    int32_t* tile_count; // one number
    TokenTile* tiles;
    void* activated; // T [positions, intermediate_size]; of the reference kernels by slot
    void* results; // T [slots, hidden_size]
    size_t bytes;
};

inline MoeWorkspace lay_out(q2export_moe_desc const& desc, void* base)
{
    WorkspaceLayout layout(base);
    int64_t const slots = desc.num_tokens * desc.top_k;
    size_t const element = element_size(desc.dtype);
    MoeWorkspace parts{};
    parts.experts = layout.take<Expert>(desc.num_experts);
    parts.chosen = layout.take<int32_t>(slots);
    parts.weight = layout.take<float>(slots);
    parts.rank = layout.take<int32_t>(slots);
    parts.histogram = layout.take<int32_t>(max_chunk_count(desc.num_tokens) * desc.num_experts);
    parts.sorted = layout.take<int32_t>(slots);
    parts.tile_count = layout.take<int32_t>(1);
    parts.tiles = layout.take<TokenTile>(max_token_tiles(slots, desc.num_experts, kSmallestTokenTile));
    parts.activated = layout.take_bytes(static_cast<size_t>(slots * desc.intermediate_size) * element);
    parts.results = layout.take_bytes(static_cast<size_t>(slots * desc.hidden_size) * element);
    parts.bytes = layout.used();
    return parts;
}

} // namespace q2export
