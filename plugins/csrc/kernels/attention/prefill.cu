#include "attention/prefill.cuh"

#include "attention/prefill_hopper.cuh"
#include "attention/prefill_kernel.cuh"
#include "common/error.h"
#include "common/launch.cuh"
#include "common/vector.cuh"

namespace q2export
{
namespace
{

constexpr char kOp[] = "prefill_attention";

template <typename Element, int kHeadDim, PrefillTile kTile>
q2export_status launch_prefill(
    PrefillArguments<Element> const& arguments, PrefillPlan const& plan, q2export_stream stream)
{
    LaunchShape shape{plan.blocks};
    shape.threads = kPrefillThreads;
    shape.shared_bytes = prefill_shared_bytes(kTile, kHeadDim);
    return launch(stream, shape, prefill_kernel<Element, kHeadDim, kTile>, arguments);
}

template <typename Element, int kHeadDim>
q2export_status launch_prefill(
    PrefillArguments<Element> const& arguments, PrefillPlan const& plan, q2export_stream stream)
{
    switch (plan.tile)
    {
    case PrefillTile::kShort: return launch_prefill<Element, kHeadDim, PrefillTile::kShort>(arguments, plan, stream);
    case PrefillTile::kTall: return launch_prefill<Element, kHeadDim, PrefillTile::kTall>(arguments, plan, stream);
    default: return launch_hopper_prefill<Element, kHeadDim>(arguments, plan, stream);
    }
}

} // namespace

template <typename Element>
q2export_status prefill_attention(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Element const* query, PrefillPlan const& plan, q2export_stream stream)
{
    if (!prefill_serves(desc))
    {
        return fail(Q2EXPORT_UNSUPPORTED, "%s: dtype %d, head_dim %d, scale %g", kOp, static_cast<int>(desc.dtype),
            static_cast<int>(desc.head_dim), static_cast<double>(desc.scale));
    }
    Q2EXPORT_TRY(check_aligned(kOp, "query", query));
    Q2EXPORT_TRY(check_aligned(kOp, "present_key", tensors.present_key));
    Q2EXPORT_TRY(check_aligned(kOp, "present_value", tensors.present_value));
    Q2EXPORT_TRY(check_aligned(kOp, "output", tensors.output));
    constexpr float kLog2E = 1.44269504088896340736F;
    PrefillArguments<Element> const arguments{desc, query, static_cast<Element const*>(tensors.present_key),
        static_cast<Element const*>(tensors.present_value), tensors.past_lengths, tensors.query_lengths,
        static_cast<Element*>(tensors.output), desc.scale * kLog2E, static_cast<uint32_t>(plan.row_tiles),
        static_cast<uint32_t>(plan.section)};
    return desc.head_dim == 64 ? launch_prefill<Element, 64>(arguments, plan, stream)
                               : launch_prefill<Element, 128>(arguments, plan, stream);
}

template <typename Element>
q2export_status prefill_attention(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Element const* query, Gpu const& gpu, q2export_stream stream)
{
    return prefill_attention(desc, tensors, query, plan_prefill(desc, gpu), stream);
}

template q2export_status prefill_attention(q2export_attention_desc const&, q2export_attention_tensors const&,
    __half const*, Gpu const&, q2export_stream);
template q2export_status prefill_attention(q2export_attention_desc const&, q2export_attention_tensors const&,
    __nv_bfloat16 const*, Gpu const&, q2export_stream);
template q2export_status prefill_attention(q2export_attention_desc const&, q2export_attention_tensors const&,
    __half const*, PrefillPlan const&, q2export_stream);
template q2export_status prefill_attention(q2export_attention_desc const&, q2export_attention_tensors const&,
    __nv_bfloat16 const*, PrefillPlan const&, q2export_stream);

} // namespace q2export
