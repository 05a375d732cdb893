// Attention of many new tokens at once, on tensor cores (Dao 2023), for the keys and values that are in the cache.
#pragma once

#include "attention/prefill_heuristics.h"
#include "common/gpu.h"
#include "q2export/kernels.h"

namespace q2export
{

// Queues the attention of every token; the new keys and values already stand in tensors.present_key and present_value.
// query is [batch, sequence, num_heads, head_dim], rotated. Of tensors it reads the lengths and the present cache and
// writes the output, all of it. Element is __half or __nv_bfloat16.
//
// Q2EXPORT_UNSUPPORTED where prefill_serves() is false, Q2EXPORT_INVALID_ARGUMENT for pointers that are not aligned to
// 16 bytes.
template <typename Element>
q2export_status prefill_attention(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Element const* query, Gpu const& gpu, q2export_stream stream);

// The same with a plan of the caller's, for tests and benchmarks.
template <typename Element>
q2export_status prefill_attention(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Element const* query, PrefillPlan const& plan, q2export_stream stream);

} // namespace q2export
