// Q2MoE by tensor cores, compiled once per element type.
#pragma once

#include "common/gpu.h"
#include "moe/arguments.h"

namespace q2export
{

// Queues a layer: by the fast kernels with this plan if they take the call, by the reference kernels if not.
q2export_status run_moe(MoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);

// Queues the router and the sort of the slots into tiles of so many tokens.
q2export_status route_and_sort(
    RouterCall const& call, MoeWorkspace const& parts, int32_t tile_tokens, bool overlaps);

// Queues both products and the weighted sum. Element: __half or __nv_bfloat16.
template <typename Element>
q2export_status multiply_experts(
    MoeCall const& call, MoeWorkspace const& parts, Gpu const& gpu, MoePlan const& plan);

} // namespace q2export
