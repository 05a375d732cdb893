// The workspace of the attention functions.
#pragma once

#include "attention/heuristics.h"
#include "common/arguments.h"
#include "common/element.cuh"

namespace q2export
{

// What blocks of decode attention leave for the last one of their unit to combine.
struct DecodePartials
{
    float* output; // [blocks, tile rows, head_dim], relative to the maximum
    float2* softmax; // [blocks, tile rows]: maximum and sum
    uint32_t* arrivals; // [units], zero before the launch
};

struct AttentionWorkspace
{
    void* query; // T [batch, sequence, num_heads, head_dim], rotated; only where the op rotates
    DecodePartials partials;
    size_t bytes;
};

// Its size depends on the description alone, and so holds what the plan for any GPU needs.
inline AttentionWorkspace lay_out_attention(q2export_attention_desc const& desc, bool rotates, void* base)
{
    WorkspaceLayout layout(base);
    AttentionWorkspace parts{};
    if (rotates)
    {
        int64_t const elements = desc.batch * desc.sequence * desc.num_heads * desc.head_dim;
        parts.query = layout.take_bytes(static_cast<size_t>(elements) * element_size(desc.dtype));
    }
    if (prefill_serves(desc) && desc.batch > 0 && desc.sequence > 0)
    {
        int64_t const blocks = max_partial_blocks(desc);
        int64_t const rows = blocks * decode_tile_rows(desc);
        parts.partials.output = layout.take<float>(rows * desc.head_dim);
        parts.partials.softmax = layout.take<float2>(rows);
        parts.partials.arrivals = layout.take<uint32_t>(blocks);
    }
    parts.bytes = layout.used();
    return parts;
}

} // namespace q2export
