// Prefill attention for Hopper: products of whole warpgroups (Shah et al. 2024, FlashAttention-3, section 3.2).
#pragma once

#include "attention/prefill_block.cuh"

namespace q2export
{

// Queues it, for a plan with PrefillTile::kHopper. The kernel is compiled for sm_90a alone.
template <typename Element, int kHeadDim>
q2export_status launch_hopper_prefill(
    PrefillArguments<Element> const& arguments, PrefillPlan const& plan, q2export_stream stream);

} // namespace q2export
