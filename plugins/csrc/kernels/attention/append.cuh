// The new keys and values into the cache, and for Q2RotaryAttention the rotation of query and key on the way.
#pragma once

#include <cstdint>

#include "common/error.h"
#include "q2export/kernels.h"

namespace q2export
{

// How queries and keys are turned; a null inv_freq leaves them as they are.
struct Rotation
{
    float const* inv_freq = nullptr; // [head_dim / 2]
    float attention_factor = 1.0F;
};

template <typename Element>
struct AppendArguments
{
    q2export_attention_desc desc;
    Element const* query; // [batch, sequence, num_heads, head_dim]
    Element const* key; // [batch, sequence, num_kv_heads, head_dim], as is value
    Element const* value;
    int64_t const* past_lengths;
    int64_t const* query_lengths;
    Rotation rotation;
    Element* rotated_query; // as query; not written without a rotation
    Element* keys; // [batch, num_kv_heads, capacity, head_dim], as are the values
    Element* values;
    uint32_t* arrivals; // what decode attention counts with, set to zero on the way
    int64_t num_arrivals;
};

// Queues it for the tokens that are there; padding is neither read from nor written to the cache. At least one token.
template <typename Element>
q2export_status append(AppendArguments<Element> const& arguments, q2export_stream stream);

} // namespace q2export
