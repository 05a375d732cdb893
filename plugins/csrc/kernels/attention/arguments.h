// Checks, sizes and preparation that Q2GroupQueryAttention and Q2RotaryAttention share.
#pragma once

#include "common/arguments.h"
#include "common/element.cuh"

namespace q2export
{

inline q2export_status check_attention(char const* op, q2export_attention_desc const* desc)
{
    Q2EXPORT_TRY(check_pointer(op, "desc", desc));
    Q2EXPORT_TRY(check_dtype(op, desc->dtype));
    Q2EXPORT_TRY(check_range(op, "batch", desc->batch, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "sequence", desc->sequence, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "capacity", desc->capacity, 0, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "num_heads", desc->num_heads, 1, INT32_MAX));
    Q2EXPORT_TRY(check_range(op, "num_kv_heads", desc->num_kv_heads, 1, INT32_MAX));
    Q2EXPORT_TRY(check_multiple(op, "num_heads", desc->num_heads, desc->num_kv_heads));
    Q2EXPORT_TRY(check_range(op, "head_dim", desc->head_dim, 1, Q2EXPORT_MAX_HEAD_DIM));
    Q2EXPORT_TRY(check_range(op, "sliding_window", desc->sliding_window, 0, INT32_MAX));
    Q2EXPORT_TRY(check_elements(op, "query", desc->batch, desc->sequence, desc->num_heads, desc->head_dim));
    return check_elements(op, "past_key", desc->batch, desc->num_kv_heads, desc->capacity, desc->head_dim);
}

// Whether the op has no output element and no cache to update.
inline bool is_empty(q2export_attention_desc const& desc)
{
    return desc.batch == 0 || (desc.sequence == 0 && desc.capacity == 0);
}

// Refuses missing tensors; those without elements may be null.
inline q2export_status check_attention_tensors(
    char const* op, q2export_attention_desc const& desc, q2export_attention_tensors const* tensors)
{
    Q2EXPORT_TRY(check_pointer(op, "tensors", tensors));
    Q2EXPORT_TRY(check_pointer(op, "past_lengths", tensors->past_lengths));
    Q2EXPORT_TRY(check_pointer(op, "query_lengths", tensors->query_lengths));
    if (desc.sequence > 0)
    {
        Q2EXPORT_TRY(check_pointer(op, "query", tensors->query));
        Q2EXPORT_TRY(check_pointer(op, "key", tensors->key));
        Q2EXPORT_TRY(check_pointer(op, "value", tensors->value));
        Q2EXPORT_TRY(check_pointer(op, "output", tensors->output));
    }
    if (desc.capacity > 0)
    {
        Q2EXPORT_TRY(check_pointer(op, "past_key", tensors->past_key));
        Q2EXPORT_TRY(check_pointer(op, "past_value", tensors->past_value));
        Q2EXPORT_TRY(check_pointer(op, "present_key", tensors->present_key));
        Q2EXPORT_TRY(check_pointer(op, "present_value", tensors->present_value));
    }
    return Q2EXPORT_SUCCESS;
}

// Copies a cache that is not updated in place.
inline q2export_status carry_over(
    q2export_attention_desc const& desc, void const* past, void* present, q2export_stream stream)
{
    if (past == present)
    {
        return Q2EXPORT_SUCCESS;
    }
    size_t const elements = static_cast<size_t>(desc.batch * desc.num_kv_heads * desc.capacity * desc.head_dim);
    return cuda_status(cudaMemcpyAsync(present, past, elements * element_size(desc.dtype), cudaMemcpyDeviceToDevice,
        static_cast<cudaStream_t>(stream)));
}

inline q2export_status carry_over(
    q2export_attention_desc const& desc, q2export_attention_tensors const& tensors, q2export_stream stream)
{
    Q2EXPORT_TRY(carry_over(desc, tensors.past_key, tensors.present_key, stream));
    return carry_over(desc, tensors.past_value, tensors.present_value, stream);
}

} // namespace q2export
