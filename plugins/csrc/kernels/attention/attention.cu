#include "attention/attention.h"

#include <type_traits>

#include "attention/arguments.h"
#include "attention/decode.cuh"
#include "attention/heuristics.h"
#include "attention/prefill.cuh"
#include "attention/reference.cuh"
#include "attention/workspace.h"
#include "common/gpu.h"
#include "common/vector.cuh"

namespace q2export
{
namespace
{

// The fast kernels read and write vectors. A query that is rotated lies in the workspace.
q2export_status check_alignment(char const* op, q2export_attention_desc const& desc,
    q2export_attention_tensors const& tensors, bool rotates)
{
    if (desc.sequence == 0 || choose_attention_kernel(desc) == AttentionKernel::kReference)
    {
        return Q2EXPORT_SUCCESS;
    }
    if (!rotates)
    {
        Q2EXPORT_TRY(check_aligned(op, "query", tensors.query));
    }
    Q2EXPORT_TRY(check_aligned(op, "present_key", tensors.present_key));
    Q2EXPORT_TRY(check_aligned(op, "present_value", tensors.present_value));
    return check_aligned(op, "output", tensors.output);
}

template <typename Element>
q2export_status run(q2export_attention_desc const& desc, q2export_attention_tensors const& tensors,
    Rotation const& rotation, AttentionWorkspace const& workspace, q2export_stream stream)
{
    bool const rotates = rotation.inv_freq != nullptr;
    Element const* const query = static_cast<Element const*>(rotates ? workspace.query : tensors.query);
    AttentionKernel const kernel = choose_attention_kernel(desc);
    Gpu gpu{};
    DecodePlan plan{};
    int64_t num_arrivals = 0;
    if (kernel != AttentionKernel::kReference)
    {
        Q2EXPORT_TRY(current_gpu(&gpu));
    }
    if (kernel == AttentionKernel::kDecode)
    {
        plan = plan_decode(desc, gpu);
        num_arrivals = plan.splits > 1 ? decode_units(desc) : 0;
    }
    AppendArguments<Element> const appended{desc, static_cast<Element const*>(tensors.query),
        static_cast<Element const*>(tensors.key), static_cast<Element const*>(tensors.value), tensors.past_lengths,
        tensors.query_lengths, rotation, static_cast<Element*>(workspace.query),
        static_cast<Element*>(tensors.present_key), static_cast<Element*>(tensors.present_value),
        workspace.partials.arrivals, num_arrivals};
    Q2EXPORT_TRY(append(appended, stream));
    if constexpr (!std::is_same_v<Element, float>)
    {
        if (kernel == AttentionKernel::kDecode)
        {
            return decode_attention(desc, tensors, query, plan, workspace.partials, stream);
        }
        if (kernel == AttentionKernel::kPrefill)
        {
            return prefill_attention(desc, tensors, query, gpu, stream);
        }
    }
    return reference_attention(desc, tensors, query, stream);
}

} // namespace

q2export_status attention_workspace_size(
    char const* op, q2export_attention_desc const& desc, bool rotates, size_t* bytes)
{
    Q2EXPORT_TRY(check_pointer(op, "bytes", bytes));
    *bytes = lay_out_attention(desc, rotates, nullptr).bytes;
    return Q2EXPORT_SUCCESS;
}

q2export_status run_attention(char const* op, q2export_attention_desc const& desc,
    q2export_attention_tensors const* tensors, Rotation const& rotation, void* workspace, size_t workspace_bytes,
    q2export_stream stream)
{
    bool const rotates = rotation.inv_freq != nullptr;
    AttentionWorkspace const parts = lay_out_attention(desc, rotates, workspace);
    Q2EXPORT_TRY(check_attention_tensors(op, desc, tensors));
    Q2EXPORT_TRY(check_alignment(op, desc, *tensors, rotates));
    Q2EXPORT_TRY(check_workspace(op, parts.bytes, workspace, workspace_bytes));
    Q2EXPORT_TRY(carry_over(desc, *tensors, stream));
    if (desc.sequence == 0)
    {
        return Q2EXPORT_SUCCESS;
    }
    return with_element_type(desc.dtype, [&](auto* type) {
        return run<std::remove_pointer_t<decltype(type)>>(desc, *tensors, rotation, parts, stream);
    });
}

} // namespace q2export
