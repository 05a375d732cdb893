// Q2RotaryAttention, reference: rotate the query into the workspace, rotate the key into the cache, attend.
#include <type_traits>

#include "attention/arguments.h"
#include "attention/attend.cuh"
#include "attention/cache.cuh"
#include "common/launch.cuh"
#include "rotary/rotation.cuh"

namespace q2export
{
namespace
{

constexpr char kOp[] = "rotary_attention";

q2export_status check_desc(q2export_attention_desc const* desc)
{
    Q2EXPORT_TRY(check_attention(kOp, desc));
    return check_multiple(kOp, "head_dim", desc->head_dim, 2);
}

struct Workspace
{
    void* query; // T [batch, sequence, num_heads, head_dim], rotated
    size_t bytes;
};

Workspace lay_out(q2export_attention_desc const& desc, void* base)
{
    WorkspaceLayout layout(base);
    int64_t const elements = desc.batch * desc.sequence * desc.num_heads * desc.head_dim;
    void* const query = layout.take_bytes(static_cast<size_t>(elements) * element_size(desc.dtype));
    return {query, layout.used()};
}

template <typename Element>
struct RotateArguments
{
    q2export_attention_desc desc;
    Element const* query; // [batch, sequence, num_heads, head_dim]
    Element const* key; // [batch, sequence, num_kv_heads, head_dim], as is value
    Element const* value;
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    float const* inv_freq; // [head_dim / 2]
    float attention_factor;
    Element* rotated_query;
    Element* keys; // [batch, num_kv_heads, capacity, head_dim], as are the values
    Element* values;
};

// One thread per pair of channels of every query, key and value head of a token, in this order.
template <typename Element>
__global__ void rotate_and_append_kernel(RotateArguments<Element> const arguments)
{
    q2export_attention_desc const& desc = arguments.desc;
    int32_t const half = desc.head_dim / 2;
    int64_t const heads = desc.num_heads + 2 * static_cast<int64_t>(desc.num_kv_heads);
    int64_t const index = element_index(); // [batch, sequence, heads, head_dim / 2]
    int32_t const i = static_cast<int32_t>(index % half);
    int64_t head = index / half % heads;
    int64_t const token = index / half / heads;
    int64_t const b = token / desc.sequence;
    int64_t const s = token % desc.sequence;
    if (b >= desc.batch)
    {
        return;
    }
    RowLengths const row = row_lengths(desc, arguments.past_lengths, arguments.query_lengths, b);
    if (s >= row.fresh)
    {
        return;
    }
    int64_t const position = row.past + s;
    if (head < desc.num_heads)
    {
        int64_t const offset = (token * desc.num_heads + head) * desc.head_dim;
        rotate_pair(arguments.query + offset, arguments.rotated_query + offset, i, desc.head_dim, position,
            arguments.inv_freq, arguments.attention_factor);
        return;
    }
    head -= desc.num_heads;
    bool const is_key = head < desc.num_kv_heads;
    head -= is_key ? 0 : desc.num_kv_heads;
    int64_t const source = (token * desc.num_kv_heads + head) * desc.head_dim;
    int64_t const target = cache_offset(desc, b, head, position);
    if (is_key)
    {
        rotate_pair(arguments.key + source, arguments.keys + target, i, desc.head_dim, position, arguments.inv_freq,
            arguments.attention_factor);
        return;
    }
    arguments.values[target + i] = arguments.value[source + i];
    arguments.values[target + half + i] = arguments.value[source + half + i];
}

} // namespace
} // namespace q2export

extern "C" q2export_status q2export_rotary_attention_workspace_size(q2export_attention_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_desc(desc));
    Q2EXPORT_TRY(check_pointer(kOp, "bytes", bytes));
    *bytes = lay_out(*desc, nullptr).bytes;
    return Q2EXPORT_SUCCESS;
}

extern "C" q2export_status q2export_rotary_attention(q2export_attention_desc const* desc,
    q2export_attention_tensors const* tensors, float const* inv_freq, float attention_factor, void* workspace,
    size_t workspace_bytes, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_desc(desc));
    if (is_empty(*desc))
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_attention_tensors(kOp, *desc, tensors));
    Q2EXPORT_TRY(check_pointer(kOp, "inv_freq", inv_freq));
    Workspace const parts = lay_out(*desc, workspace);
    Q2EXPORT_TRY(check_workspace(kOp, parts.bytes, workspace, workspace_bytes));
    return with_element_type(desc->dtype, [&](auto* type) {
        using Element = std::remove_pointer_t<decltype(type)>;
        Element* const rotated_query = static_cast<Element*>(parts.query);
        RotateArguments<Element> const arguments{*desc, static_cast<Element const*>(tensors->query),
            static_cast<Element const*>(tensors->key), static_cast<Element const*>(tensors->value),
            tensors->past_lengths, tensors->query_lengths, inv_freq, attention_factor, rotated_query,
            static_cast<Element*>(tensors->present_key), static_cast<Element*>(tensors->present_value)};
        int64_t const heads = desc->num_heads + 2 * static_cast<int64_t>(desc->num_kv_heads);
        int64_t const pairs = desc->batch * desc->sequence * heads * (desc->head_dim / 2);
        Q2EXPORT_TRY(carry_over(*desc, *tensors, stream));
        Q2EXPORT_TRY(launch(stream, one_thread_each(pairs), rotate_and_append_kernel<Element>, arguments));
        return attend(*desc, *tensors, static_cast<Element const*>(rotated_query), stream);
    });
}
