// Q2GroupQueryAttention, reference: append (one thread per element), then attend.
#include <type_traits>

#include "attention/arguments.h"
#include "attention/attend.cuh"
#include "attention/cache.cuh"
#include "common/launch.cuh"

namespace q2export
{
namespace
{

constexpr char kOp[] = "group_query_attention";

template <typename Element>
struct AppendArguments
{
    q2export_attention_desc desc;
    Element const* key; // [batch, sequence, num_kv_heads, head_dim], as is value
    Element const* value;
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    Element* keys; // [batch, num_kv_heads, capacity, head_dim], as are the values
    Element* values;
};

template <typename Element>
__global__ void append_kernel(AppendArguments<Element> const arguments)
{
    q2export_attention_desc const& desc = arguments.desc;
    int64_t const index = element_index(); // [batch, sequence, num_kv_heads, head_dim]
    int64_t const d = index % desc.head_dim;
    int64_t const head_index = index / desc.head_dim;
    int64_t const token = head_index / desc.num_kv_heads;
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
    int64_t const target = cache_offset(desc, b, head_index % desc.num_kv_heads, row.past + s) + d;
    arguments.keys[target] = arguments.key[index];
    arguments.values[target] = arguments.value[index];
}

template <typename Element>
q2export_status append(
    q2export_attention_desc const& desc, q2export_attention_tensors const& tensors, q2export_stream stream)
{
    AppendArguments<Element> const arguments{desc, static_cast<Element const*>(tensors.key),
        static_cast<Element const*>(tensors.value), tensors.past_lengths, tensors.query_lengths,
        static_cast<Element*>(tensors.present_key), static_cast<Element*>(tensors.present_value)};
    int64_t const elements = desc.batch * desc.sequence * desc.num_kv_heads * desc.head_dim;
    return launch(stream, one_thread_each(elements), append_kernel<Element>, arguments);
}

} // namespace
} // namespace q2export

extern "C" q2export_status q2export_group_query_attention_workspace_size(
    q2export_attention_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_attention(kOp, desc));
    Q2EXPORT_TRY(check_pointer(kOp, "bytes", bytes));
    *bytes = 0;
    return Q2EXPORT_SUCCESS;
}

extern "C" q2export_status q2export_group_query_attention(q2export_attention_desc const* desc,
    q2export_attention_tensors const* tensors, void*, size_t, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_attention(kOp, desc));
    if (is_empty(*desc))
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_attention_tensors(kOp, *desc, tensors));
    return with_element_type(desc->dtype, [&](auto* type) {
        using Element = std::remove_pointer_t<decltype(type)>;
        Q2EXPORT_TRY(carry_over(*desc, *tensors, stream));
        Q2EXPORT_TRY(append<Element>(*desc, *tensors, stream));
        return attend(*desc, *tensors, static_cast<Element const*>(tensors->query), stream);
    });
}
