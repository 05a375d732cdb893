// Attention of a few new tokens over long caches: the keys of a row are split among blocks (Flash-Decoding, Dao et al.
// 2023), and all heads of a group and new tokens share each read of a key.
#pragma once

#include "attention/heuristics.h"
#include "attention/workspace.h"
#include "common/gpu.h"

namespace q2export
{

// Queues the attention of every token; the new keys and values already stand in tensors.present_key and present_value,
// and partials.arrivals is zero. query is [batch, sequence, num_heads, head_dim], rotated. All pointers are aligned to
// 16 bytes; the description is one for which choose_attention_kernel() says kDecode.
template <typename Element>
q2export_status decode_attention(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Element const* query, DecodePlan const& plan, DecodePartials const& partials, q2export_stream stream);

} // namespace q2export
