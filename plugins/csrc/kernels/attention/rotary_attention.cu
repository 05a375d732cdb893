// Q2RotaryAttention.
#include "attention/arguments.h"
#include "attention/attention.h"

namespace q2export
{
namespace
{

constexpr char kOp[] = "rotary_attention";

q2export_status check_desc(q2export_attention_desc const* desc)
{
    Q2EXPORT_TRY(check_attention(kOp, desc));
    return check_multiple(kOp, "head_dim", desc->head_dim, 2);
}

} // namespace
} // namespace q2export

extern "C" q2export_status q2export_rotary_attention_workspace_size(q2export_attention_desc const* desc, size_t* bytes)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_desc(desc));
    return attention_workspace_size(kOp, *desc, true, bytes);
}

extern "C" q2export_status q2export_rotary_attention(q2export_attention_desc const* desc,
    q2export_attention_tensors const* tensors, float const* inv_freq, float attention_factor, void* workspace,
    size_t workspace_bytes, q2export_stream stream)
{
    using namespace q2export;
    Q2EXPORT_TRY(check_desc(desc));
    if (is_empty(*desc))
    {
        return Q2EXPORT_SUCCESS;
    }
    Q2EXPORT_TRY(check_pointer(kOp, "inv_freq", inv_freq));
    return run_attention(
        kOp, *desc, tensors, Rotation{inv_freq, attention_factor}, workspace, workspace_bytes, stream);
}
