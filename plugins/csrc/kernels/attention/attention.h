// What Q2GroupQueryAttention and Q2RotaryAttention have in common: all but the rotation.
#pragma once

#include "attention/append.cuh"
#include "q2export/kernels.h"

namespace q2export
{

// The workspace for a description that check_attention() has accepted.
q2export_status attention_workspace_size(
    char const* op, q2export_attention_desc const& desc, bool rotates, size_t* bytes);

// Queues the op: carries over a cache that is not updated in place, appends, attends. The description has been checked,
// the tensors are.
q2export_status run_attention(char const* op, q2export_attention_desc const& desc,
    q2export_attention_tensors const* tensors, Rotation const& rotation, void* workspace, size_t workspace_bytes,
    q2export_stream stream);

} // namespace q2export
