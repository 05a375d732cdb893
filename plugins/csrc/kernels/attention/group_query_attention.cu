// Q2GroupQueryAttention.
#include "attention/arguments.h"
#include "attention/attention.h"

namespace q2export
{
namespace
{

constexpr char kOp[] = "group_query_attention";

} // namespace
} // namespace q2export

extern "C" q2export_status q2export_group_query_attention_workspace_size(
    q2export_attention_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_attention(kOp, desc));
    return attention_workspace_size(kOp, *desc, false, bytes);
}

extern "C" q2export_status q2export_group_query_attention(q2export_attention_desc const* desc,
    q2export_attention_tensors const* tensors, void* workspace, size_t workspace_bytes, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_attention(kOp, desc));
    if (is_empty(*desc))
    {
        return Q2EXPORT_SUCCESS;
    }
    return run_attention(kOp, *desc, tensors, Rotation{}, workspace, workspace_bytes, stream);
}
