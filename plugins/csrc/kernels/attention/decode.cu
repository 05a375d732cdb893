#include "attention/decode.cuh"

#include "attention/decode_kernel.cuh"
#include "common/launch.cuh"

namespace q2export
{
namespace
{

template <typename Shape, typename Element>
q2export_status launch_decode(DecodeArguments<Element> const& arguments, q2export_stream stream)
{
    q2export_attention_desc const& desc = arguments.desc;
    LaunchShape shape{desc.batch, int64_t{desc.num_kv_heads} * arguments.row_tiles, arguments.splits};
    shape.threads = Shape::kThreads;
    shape.shared_bytes = Shape::kSharedBytes;
    return launch(stream, shape, decode_kernel<Element, Shape>, arguments);
}

template <int kHeadDim, typename Element>
q2export_status launch_plan(
    DecodeArguments<Element> const& arguments, DecodePlan const& plan, q2export_stream stream)
{
    if (plan.row_warps > 1)
    {
        return launch_decode<DecodeShape<kHeadDim, kNarrowWarps, kSharedRowWarps>>(arguments, stream);
    }
    return plan.warps == kWideWarps ? launch_decode<DecodeShape<kHeadDim, kWideWarps, 1>>(arguments, stream)
                                    : launch_decode<DecodeShape<kHeadDim, kNarrowWarps, 1>>(arguments, stream);
}

} // namespace

template <typename Element>
q2export_status decode_attention(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Element const* query, DecodePlan const& plan, DecodePartials const& partials, q2export_stream stream)
{
    constexpr float kLog2E = 1.44269504F;
    DecodeArguments<Element> const arguments{desc, query, static_cast<Element const*>(tensors.present_key),
        static_cast<Element const*>(tensors.present_value), tensors.past_lengths, tensors.query_lengths,
        static_cast<Element*>(tensors.output), desc.scale * kLog2E,
        desc.num_heads / desc.num_kv_heads, plan.row_tiles, plan.splits, partials};
    return desc.head_dim == 64 ? launch_plan<64>(arguments, plan, stream) : launch_plan<128>(arguments, plan, stream);
}

template q2export_status decode_attention(q2export_attention_desc const&, q2export_attention_tensors const&,
    __half const*, DecodePlan const&, DecodePartials const&, q2export_stream);
template q2export_status decode_attention(q2export_attention_desc const&, q2export_attention_tensors const&,
    __nv_bfloat16 const*, DecodePlan const&, DecodePartials const&, q2export_stream);

} // namespace q2export
